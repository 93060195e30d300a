package agent_policy

default AllowRequestsFailingPolicy := false
default CopyFileRequest := false
default CreateContainerRequest := true
default ExecProcessRequest := false
default ReadStreamRequest := false
default SetPolicyRequest := false
default StartContainerRequest := true

# true for everybody
ExecProcessRequest {
                                                                                true
}
