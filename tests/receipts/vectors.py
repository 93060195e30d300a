"""ACI's byte vectors, as facts: https://github.com/Dstack-TEE/private-ai-gateway, spec/test-vectors.md, aci/1."""

KEYSET = {
    "subject": "dstack-app://example-app",
    "not_after": 1_800_000_000,
    "receipt_signing_keys": [
        {
            "key_id": "receipt-1",
            "algo": "ed25519",
            "public_key": "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394",
        }
    ],
    "e2ee_public_keys": [
        {
            "key_id": "e2ee-1",
            "algo": "x25519-aes-256-gcm-hkdf-sha256",
            "public_key": "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
        }
    ],
    "tls_public_keys": [{"spki_sha256": "c0" * 32, "domain": "api.example.com"}],
}
KEYSET_DIGEST = "sha256:53a5cd44b30dcc51999754c719f2628a041f174ecbf9662a6f8e898a10cd9371"
SEED = bytes([2]) * 32

NONCE = bytes(range(32)).hex()
REPORT_DATA = "df2174d28130852b413646a3786927b93e94c11d770268b65def8bdba45cb49e"
REPORT_DATA_WITHOUT_NONCE = "0633919ca3f00e97bafaa3304278eb22420cc3ff0d19f87dfca2d3f7508150bc"

SESSION = {
    "api_version": "aci/1",
    "upstream_name": "demo-upstream",
    "endpoint": "https://upstream.example.com",
    "verifier_id": "example/1",
    "established_at": 1_750_000_000,
    "expires_at": 1_750_003_600,
    "channel_binding": [
        {"type": "tls_spki_sha256", "origin": "https://upstream.example.com", "spki_sha256": "d1" * 32}
    ],
    "claims": {
        "tee_attested": {"status": "asserted", "source": "hardware_proven", "reason": "example quote verified"},
        **{
            name: {"status": "unknown"}
            for name in (
                "gpu_attested",
                "tcb_up_to_date",
                "os_known_good",
                "serving_software_known_good",
                "model_weights_provenance",
            )
        },
        "extra": {"tcb_status": "UpToDate", "gpu_arch": "HOPPER"},
    },
    "evidence": {
        "digest": "sha256:80d70e44d0ae1e829fd5f37c3ee4a60dfbea8d3aa18407ea3f34cf7ec91da34d",
        "data": "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ==",
    },
}
SESSION_ID = "95ad1cb4dd25445808c2e9d116caf420b05703730b506395e8fc1ca6faeae28f"

REQUEST = b'{"messages":[{"content":"hi","role":"user"}],"model":"demo-model"}'
RESPONSE = b'{"choices":[],"id":"chatcmpl-123"}'
REQUEST_HASH = "sha256:94d809bf47380d8a2eab0eb6e126d4dda9364b0b4725cdf7ead52dd70b2aa87b"
RESPONSE_HASH = "sha256:dedfffe5b14d031b8e2c01996d021a15293cb7c63b56be7e4be9e89b6f0a5f61"
SIGNED_DIGEST = "sha256:1bd328e6880a5a12b3915af95ea32111310e04ab9e21ac3d71ce268e33b965c9"
SIGNATURE = (
    "d5b005e093bde3b577faf270b7184b09e169cacb0ecb206b103bd2581f997db0"
    "3da616175454b063323a23ac1dc68f1ce506c2a6eba8aa0561d5e724f0b80c03"
)
RECEIPT = {
    "api_version": "aci/1",
    "receipt_id": "rcpt-0001",
    "chat_id": "chatcmpl-123",
    "model": "demo-model",
    "workload_keyset_digest": KEYSET_DIGEST,
    "endpoint": "/v1/chat/completions",
    "method": "POST",
    "served_at": 1_750_000_000,
    "event_log": [
        {"type": "request.received", "body_hash": REQUEST_HASH},
        {"type": "request.forwarded", "body_hash": REQUEST_HASH},
        {
            "type": "upstream.verified",
            "result": "verified",
            "required": True,
            "model_id": "demo-model",
            "session_id": SESSION_ID,
        },
        {"type": "response.returned", "body_hash": RESPONSE_HASH},
    ],
    "key_id": "receipt-1",
    "signature": SIGNATURE,
}
