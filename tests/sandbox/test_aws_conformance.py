"""The services that are used as ministack has them: secrets, parameters, mail, topics, events, identity."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from tests.sandbox.aws_helpers import ASSUME, Aws, refusal, unique, until
from tests.sandbox.conftest import running_aws


def test_secret_versions_are_promoted(aws: Aws) -> None:
    name = unique("secret")
    secrets = aws.secretsmanager
    first = secrets.create_secret(Name=name, SecretString="one")["VersionId"]
    token = str(uuid.uuid4())
    for _ in range(2):  # the same token is the same version
        second = secrets.put_secret_value(
            SecretId=name, SecretString="two", ClientRequestToken=token, VersionStages=["AWSPENDING"]
        )["VersionId"]
        assert second == token
    assert secrets.get_secret_value(SecretId=name)["SecretString"] == "one"
    secrets.update_secret_version_stage(
        SecretId=name, VersionStage="AWSCURRENT", MoveToVersionId=second, RemoveFromVersionId=first
    )
    assert secrets.get_secret_value(SecretId=name)["SecretString"] == "two"
    assert secrets.get_secret_value(SecretId=name, VersionStage="AWSPREVIOUS")["SecretString"] == "one"
    secrets.put_secret_value(SecretId=name, SecretString="three")
    stages = secrets.describe_secret(SecretId=name)["VersionIdsToStages"]
    assert sum("AWSCURRENT" in one for one in stages.values()) == 1


def test_secret_rotation_by_a_function(aws: Aws) -> None:
    name, function = unique("rotated"), aws.make_function()
    aws.secretsmanager.create_secret(Name=name, SecretString="one")
    arn = aws.function.get_function_configuration(FunctionName=function)["FunctionArn"]
    aws.secretsmanager.rotate_secret(SecretId=name, RotationLambdaARN=arn, RotationRules={"AutomaticallyAfterDays": 30})
    assert aws.secretsmanager.describe_secret(SecretId=name)["RotationEnabled"]


def test_parameters_keep_their_versions(aws: Aws) -> None:
    name = f"/{unique('parameter')}/value"
    for value in ("one", "two"):
        aws.ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=value == "two")
    assert aws.ssm.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"] == "two"
    assert aws.ssm.get_parameter(Name=name)["Parameter"]["Value"] != "two"
    assert aws.ssm.get_parameter(Name=f"{name}:1", WithDecryption=True)["Parameter"]["Value"] == "one"
    assert len(aws.ssm.get_parameter_history(Name=name)["Parameters"]) == 2


def test_topic_reaches_a_queue(aws: Aws) -> None:
    topic = aws.sns.create_topic(Name=unique("topic"))["TopicArn"]
    queue = aws.sqs.create_queue(QueueName=unique("queue"))["QueueUrl"]
    arn = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    aws.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    aws.sns.publish(TopicArn=topic, Message="hello")
    (message,) = until(lambda: aws.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"), "a message")
    assert json.loads(message["Body"])["Message"] == "hello"


def test_event_rule_reaches_a_queue(aws: Aws) -> None:
    name = unique("rule")
    queue = aws.sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    aws.events.put_rule(Name=name, EventPattern=json.dumps({"source": [name]}))
    aws.events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": arn}])
    aws.events.put_events(Entries=[{"Source": name, "DetailType": "test", "Detail": "{}"}])
    assert until(lambda: aws.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"), "an event")


def test_mail_needs_a_verified_sender_and_is_kept(aws: Aws) -> None:
    sender = f"{unique('o')}@example.com"
    mail = {
        "Source": sender,
        "Destination": {"ToAddresses": ["a@example.com"]},
        "Message": {"Subject": {"Data": "subject"}, "Body": {"Text": {"Data": "text"}}},
    }
    assert refusal(aws.ses.send_email, **mail) == "MessageRejected"
    aws.ses.verify_email_identity(EmailAddress=sender)
    aws.ses.send_email(**mail)
    assert sender in aws.http.get(f"{aws.endpoint}/_ministack/ses/messages").text


def test_identity(aws: Aws) -> None:
    assert aws.sts.get_caller_identity()["Account"] == "123456789012"
    role = aws.iam.create_role(RoleName=unique("role"), AssumeRolePolicyDocument=json.dumps(ASSUME))["Role"]["Arn"]
    aws.iam.simulate_principal_policy(PolicySourceArn=role, ActionNames=["lambda:InvokeFunction"])
    aws.function.get_account_settings()
    schedule = {"ScheduleExpression": "rate(1 minutes)", "FlexibleTimeWindow": {"Mode": "OFF"}}
    target = {"Arn": "arn:aws:sqs:us-east-1:123456789012:q", "RoleArn": role}
    aws.scheduler.create_schedule(Name=unique("schedule"), Target=target, **schedule)


def test_objects_have_versions(aws: Aws) -> None:
    bucket = unique("bucket")
    aws.s3.create_bucket(Bucket=bucket)
    aws.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    versions = [aws.s3.put_object(Bucket=bucket, Key="k", Body=body)["VersionId"] for body in (b"a", b"b")]
    assert len(set(versions)) == 2
    assert aws.s3.get_object(Bucket=bucket, Key="k", VersionId=versions[0])["Body"].read() == b"a"
    assert refusal(aws.s3.get_object, Bucket=bucket, Key="absent") == "NoSuchKey"


def test_reset_forgets_everything_and_the_end_leaves_nothing(tmp_path: Path) -> None:
    group = {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup"}}}
    with running_aws(tmp_path) as endpoint:
        aws = Aws(endpoint)
        for name in ("before", "after"):
            aws.create_stack(name, group, ClientRequestToken="same")
            function = aws.make_function()
            api = aws.make_api(function)
            assert aws.get(api).status_code == 200
            assert aws.total("Invocations", FunctionName=function) == 1
            assert [stack["StackName"] for stack in aws.cloudformation.list_stacks()["StackSummaries"]] == [name]
            if name == "before":
                aws.http.post(f"{endpoint}/_ministack/reset").raise_for_status()
                assert aws.total("Invocations", FunctionName=function) == 0
                assert aws.get(api).status_code == 404
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]
