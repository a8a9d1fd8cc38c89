"""The State Tracking API of the sandbox: a small real service, deployed as a real Lambda function by CloudFormation."""
