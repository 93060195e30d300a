// What the panel's lines mean, in plain words.

export const FAMILIES = {
  sgx: "Intel SGX",
  tdx: "Intel TDX",
  "sev-snp": "AMD SEV-SNP",
  tpm: "TPM",
  "nvidia-gpu": "NVIDIA GPU",
  "azure-cvm": "Azure confidential VM",
  "aws-nitro": "AWS Nitro Enclave",
  composite: "Several parts together",
  "verifier-token": "A verification service’s word",
};

export const LINES = {
  mode: ["Protection", {
    enclave: "The model runs inside a trusted execution environment: memory that the machine’s owner cannot read. " +
      "The processor signs what runs there, and every question is encrypted to a key that only it has.",
    hybrid: "The model’s shell runs in this proxy, on your machine. The large layers are on a server, which only " +
      "computes on encrypted numbers. It sees neither your words nor the answer’s.",
  }],
  family: ["Hardware", "Whose technology keeps the model’s memory closed, and by whose word the evidence is genuine. " +
    "You trust this maker, and that its processors have no hole."],
  measurements: ["Code", "Digests of what was started there, signed by the processor. They prove which code runs only " +
    "if your policy names the ones that you trust; see Policy."],
  model: ["Model", "A digest of the model that the workload says it serves. If the policy names it, no other model can " +
    "answer in its place."],
  engine: ["Engine", "The program that computes the answers, as the measured code states it."],
  quantization: ["Numbers", "How the model’s weights are stored. Fewer bits are faster and a little less exact. This " +
    "changes how good answers are, and not who sees them."],
  policy: ["Policy", "What the evidence had to show before anything was sent. What a policy leaves open, nobody checked."],
  checks: ["Checks", "Each single thing that was looked at. One that failed would have stopped your question. One that " +
    "was not made is shown as such: it is not a pass."],
  receipts: ["Receipts", {
    enclave: "What the workload signed about each answer: the digests of question and answer, and what made it. The proxy " +
      "fetches and checks each one before it hands on the answer’s end. One that is missing or wrong stops the answer.",
    hybrid: "What this proxy itself wrote down and signed about each answer. It is your own record of what was checked, " +
      "and no word of the server’s.",
  }],
  age: ["Evidence", "How long ago the workload was last verified. The proxy verifies it again every ten minutes, and at " +
    "once when its key changes."],
  replicas: ["Replicas", "Servers that answer to this name, and those behind a balancer at one address. Each is verified " +
    "by itself before anything is encrypted to it. The first address that is ready answers; if it does not begin to, the " +
    "next one is asked."],
  runs: ["Also stated", "What else the measured code says of itself: whether it can open connections to elsewhere, and " +
    "whether it computed known answers rightly."],
  trust: ["Who sees what", "The whole of it: who can see the prompt, the weights and the answer, and what that rests on."],
  server: ["Server", "Where questions go. The address itself proves nothing."],
  last: ["Last seen", "The beginning of the last message that the layer server got from this proxy. If it looks like " +
    "noise, that is the point: without a secret that lives for one token it cannot be told from noise."],
  lengths: ["Lengths", "Tokens of the last question and answer, and what the server saw of them: lengths are padded, so " +
    "that it cannot count your words."],
  bytes: ["Traffic", "What went to the server and came back since the model was opened. The part that is sent ahead says " +
    "nothing of any question, for there is none yet."],
  pool: ["Ready ahead", "Tokens for which one-time secrets are already made, in this proxy’s memory. Each serves once."],
  disclosed: ["Disclosed", "What answers tell you of the owner’s weights, at the most. The owner meters it: at 100 % the " +
    "most exposed layer could be computed from what you got. It says nothing of your words."],
};

export const explain = (key, mode) => {
  const [label, words] = LINES[key];
  return [label, typeof words === "string" ? words : words[mode] ?? ""];
};
