package agent_policy

default AllowRequestsFailingPolicy := false
default CopyFileRequest := false
default CreateContainerRequest := false

CreateContainerRequest if {
    input.OCI.Process.Args == ["confide", "serve", "/package"]
}

CopyFileRequest if {
    startswith(input.path, "/run/kata-containers/shared/containers/")
}

default ExecProcessRequest := false
default ReadStreamRequest := false
default SetPolicyRequest := false
default StartContainerRequest := true
