"""Where the API's connection string leads, and how it is made to lead elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.clients import Aws
from activities.connection_string import Address, AddressOf, ConnectionString, Repoint, address_of, leading_to
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from tests.activities.site import Site

ELSEWHERE = Address(summary="", scheme="mongodb+srv", hosts="b.example.net", database="other")


@pytest.mark.parametrize(
    ("uri", "hosts", "database", "leads_to"),
    [
        ("mongodb://h:1/d", "h:1", "d", "mongodb+srv://b.example.net/other"),
        ("mongodb://h", "h", "", "mongodb+srv://b.example.net/other"),
        (
            "mongodb://u:p%40w@h:1,i:2/d?replicaSet=r",
            "h:1,i:2",
            "d",
            "mongodb+srv://u:p%40w@b.example.net/other?replicaSet=r&authSource=d",
        ),
        ("mongodb://u:p@h/", "h", "", "mongodb+srv://u:p@b.example.net/other?authSource=admin"),
        ("mongodb://u:p@h/d?authSource=x", "h", "d", "mongodb+srv://u:p@b.example.net/other?authSource=x"),
        ("mongodb+srv://u:p@a.example.net/d?w=1", "a.example.net", "d", "mongodb+srv://u:p@b.example.net/other?w=1"),
    ],
)
def test_an_address_is_exchanged_and_nothing_else(uri: str, hosts: str, database: str, leads_to: str) -> None:
    found = address_of(uri)
    assert (found.hosts, found.database) == (hosts, database)
    assert leading_to(uri, ELSEWHERE) == leads_to
    assert address_of(leading_to(leads_to, found)) == found, "and back"


def test_no_connection_string_is_not_repeated() -> None:
    with pytest.raises(ApplicationError) as refused:
        address_of("postgres://u:s3cret@h/d")
    assert "s3cret" not in str(refused.value)


class Repointed:
    """A deployed stage whose connection string is in Systems Manager, and two databases."""

    def __init__(self, site: Site, aws: Aws, uri: str) -> None:
        self.aws, self.name = aws, f"d{secrets.token_hex(4)}"
        self.parameter = f"/test/{self.name}/uri"
        self.was = uri.replace("/?", f"/{self.name}?")
        aws.ssm.put_parameter(Name=self.parameter, Value=self.was, Type="SecureString")
        database = {"uri": f"ssm:{self.parameter}", "name": self.name}
        self.stage = Stage.model_validate(site.stage().model_dump() | {"database": database})
        self.mongo = pymongo.MongoClient[dict[str, Any]](uri)
        self.mongo[f"{self.name}_restored"]["a"].insert_one({})
        self.resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        self.strings = ConnectionString(self.resolver, aws.functions, poll=0.02)

    def value(self) -> str:
        return str(self.aws.ssm.get_parameter(Name=self.parameter, WithDecryption=True)["Parameter"]["Value"])

    def live(self) -> str:
        alias = self.aws.functions.get_alias(FunctionName=self.stage.function, Name=self.stage.alias)
        return alias["FunctionVersion"]

    def variables(self, version: str) -> dict[str, str]:
        found = self.aws.functions.get_function_configuration(FunctionName=self.stage.function, Qualifier=version)
        return dict(found["Environment"]["Variables"])

    def repoint(self, database: str, key: str = "k") -> Any:
        to = address_of(self.was).model_copy(update={"database": database})
        return ActivityEnvironment().run(self.strings.repoint, Repoint(stage=self.stage, to=to, key=key))


@pytest.fixture
def repointed(new_site: Callable[[], Site], aws: Aws, wire_database: str) -> Iterator[Repointed]:
    site = new_site()
    site.deploy("good")
    made = Repointed(site, aws, wire_database)
    yield made
    made.mongo.drop_database(f"{made.name}_restored")
    made.mongo.close()


def test_repointing_and_back(repointed: Repointed) -> None:
    before = repointed.live()
    kept = repointed.variables(before)
    done = repointed.repoint(f"{repointed.name}_restored")
    assert done.changed
    assert repointed.value() == repointed.was.replace(f"/{repointed.name}?", f"/{repointed.name}_restored?")
    after = repointed.live()
    assert done.version == after != before, "every environment starts anew and reads it"
    assert repointed.variables(after).items() >= kept.items(), "no variable is lost"
    assert "mongodb://" not in done.model_dump_json()
    again = repointed.repoint(f"{repointed.name}_restored")
    assert (again.changed, repointed.live()) == (False, after), "safe to repeat"
    asked = AddressOf(stage=repointed.stage)
    seen = ActivityEnvironment().run(repointed.strings.address, asked)
    assert seen.database == f"{repointed.name}_restored"
    repointed.mongo[repointed.name]["a"].insert_one({})
    repointed.repoint(repointed.name, key="undo")
    assert repointed.value() == repointed.was
    assert repointed.live() not in (before, after)
    repointed.mongo.drop_database(repointed.name)


def test_nothing_changes_where_the_api_could_not_read(repointed: Repointed) -> None:
    before = repointed.live()
    with pytest.raises(ApplicationError) as refused:
        repointed.repoint(f"{repointed.name}_nothing")
    assert refused.value.type == "NotReadable"
    assert (repointed.value(), repointed.live()) == (repointed.was, before)


def test_code_that_is_not_live_is_not_deployed_on_the_way(repointed: Repointed, aws: Aws) -> None:
    live = repointed.live()
    site_code = aws.functions.get_function(FunctionName=repointed.stage.function)
    assert site_code["Configuration"]["Version"] == "$LATEST"
    aws.functions.update_function_code(FunctionName=repointed.stage.function, ZipFile=other_code())
    with pytest.raises(ApplicationError) as refused:
        repointed.repoint(f"{repointed.name}_restored")
    assert refused.value.type == "CodeDiffers"
    assert (repointed.value(), repointed.live()) == (repointed.was, live)


def test_settings_that_were_taken_back_do_not_come_along(site: Site, aws: Aws, wire_database: str) -> None:
    live = site.take_settings_back()
    made = Repointed(site, aws, wire_database)
    for key, database in (("there", f"{made.name}_restored"), ("undo", f"{made.name}_restored")):
        version = made.repoint(database, key).version
        variables = made.variables(version)
        assert variables.pop("RUNBOOKS_RESTARTED")
        assert (made.live(), variables) == (version, live["Environment"]["Variables"])
    made.mongo.drop_database(f"{made.name}_restored")
    made.mongo.close()


def other_code() -> bytes:
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handler.py", "def handler(event, context): return {}\n")
    return packed.getvalue()


def test_a_secret_that_only_a_person_can_change(repointed: Repointed, tmp_path: Any) -> None:
    (tmp_path / "uri").write_text(repointed.was)
    database = {"uri": f"file:{tmp_path / 'uri'}", "name": repointed.name}
    repointed.stage = Stage.model_validate(repointed.stage.model_dump() | {"database": database})
    with pytest.raises(ApplicationError, match="only a person can change") as refused:
        repointed.repoint(f"{repointed.name}_restored")
    assert refused.value.type == "NotWritable"


def test_one_field_of_a_secret_in_secrets_manager(repointed: Repointed, aws: Aws) -> None:
    name = f"test/{repointed.name}"
    text = '{"uri": "' + repointed.was + '", "other": "kept"}'
    aws.secretsmanager.create_secret(Name=name, SecretString=text)
    database = {"uri": f"secretsmanager:{name}#uri", "name": repointed.name}
    repointed.stage = Stage.model_validate(repointed.stage.model_dump() | {"database": database})
    repointed.repoint(f"{repointed.name}_restored")
    found = aws.secretsmanager.get_secret_value(SecretId=name)["SecretString"]
    assert found == text.replace(f"/{repointed.name}?", f"/{repointed.name}_restored?")
