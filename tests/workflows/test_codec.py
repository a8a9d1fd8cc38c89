"""Keyring and codec: what is encrypted comes back under any of the keys, and nothing else is taken for it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.converter import WorkflowSerializationContext

from activities.keyring import Key, Keyring, read_keyring
from activities.settings import ConfigError, Encryption, Settings
from workflows.codec import ENCODING, KEY_ID, EncryptionCodec, MissingKeyError
from workflows.plugin import converter

OLD, NEW = Key.new("old"), Key.new("new")
PAYLOADS = st.builds(
    Payload, metadata=st.dictionaries(st.text(max_size=20), st.binary(max_size=20)), data=st.binary(max_size=500)
)


async def sealed(keyring: Keyring, text: str = "the plan") -> Payload:
    (payload,) = await EncryptionCodec(keyring).encode([Payload(metadata={"encoding": b"x"}, data=text.encode())])
    return payload


@given(st.lists(PAYLOADS, max_size=4))
async def test_what_is_encrypted_comes_back(payloads: list[Payload]) -> None:
    codec = EncryptionCodec(Keyring((NEW,)))
    encoded = await codec.encode(payloads)
    assert await codec.decode(encoded) == payloads
    for before, after in zip(payloads, encoded, strict=True):
        assert after.metadata == {"encoding": ENCODING, KEY_ID: NEW.id.encode()}
        assert len(before.data) < 8 or before.data not in after.data


@given(PAYLOADS)
async def test_what_was_never_encrypted_stays_as_it_is(payload: Payload) -> None:
    for keyring in (None, Keyring((NEW,))):
        assert await EncryptionCodec(keyring).decode([payload]) == [payload]
    assert await EncryptionCodec(None).encode([payload]) == [payload]


@pytest.mark.parametrize("keyring", [None, Keyring((NEW,))])
def test_no_converter_asks_whose_a_payload_is(keyring: Keyring | None) -> None:
    """Runs do not say it, because to find out takes long (``ahead.Level``): with one that asks, they have to."""
    ours = converter(keyring)
    assert ours.with_context(WorkflowSerializationContext(namespace="default", workflow_id="a-run")) is ours


async def test_the_same_thing_twice_looks_different() -> None:
    assert (await sealed(Keyring((NEW,)))).data != (await sealed(Keyring((NEW,)))).data


async def test_a_key_is_rotated_without_a_gap() -> None:
    before = Keyring((OLD,))
    known = before.with_key(NEW)
    rotated = known.encrypting_with(NEW.id)
    assert (await sealed(known)).metadata[KEY_ID] == OLD.id.encode()
    assert (await sealed(rotated)).metadata[KEY_ID] == NEW.id.encode()
    for written in (before, known, rotated):
        for reading in (known, rotated):
            (plain,) = await EncryptionCodec(reading).decode([await sealed(written)])
            assert plain.data == b"the plan"
    assert Keyring.of(rotated.text()) == rotated


async def test_keys_that_only_decrypt_encrypt_nothing() -> None:
    codec = EncryptionCodec(Keyring((NEW,), decrypt_only=True))
    plain = Payload(data=b"the plan")
    assert (codec.key_id, await codec.encode([plain])) == (None, [plain])
    assert (await codec.decode([await sealed(Keyring((NEW,)))]))[0].data == b"the plan"


async def test_a_missing_key_is_named_with_what_to_do() -> None:
    for keyring, has in ((None, "it has no keyring"), (Keyring((OLD,)), f"its keyring has only {OLD.id}")):
        with pytest.raises(MissingKeyError, match=f"lacks the key {NEW.id}.*{has}.*Add the key"):
            await EncryptionCodec(keyring).decode([await sealed(Keyring((NEW,)))])


async def test_what_no_key_fits_is_left_as_it_is() -> None:
    """The frame then says that it cannot be read; an error would hold the run for ever."""
    codec, good = EncryptionCodec(Keyring((NEW, OLD))), await sealed(Keyring((NEW,)))
    altered = Payload(metadata=good.metadata, data=good.data[:-1] + bytes([good.data[-1] ^ 1]))
    renamed = Payload(metadata={"encoding": ENCODING, KEY_ID: OLD.id.encode()}, data=good.data)
    short = Payload(metadata=good.metadata, data=good.data[:20])
    foreign = Payload(metadata={"encoding": ENCODING, KEY_ID: b"test-key-id"}, data=good.data)
    nameless = Payload(metadata={"encoding": ENCODING}, data=good.data)
    for strange in (altered, renamed, short, foreign, nameless):
        assert await codec.decode([strange]) == [strange]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no key in it"),
        ("# only a comment\n\n", "there is no key in it"),
        ("k-0123456789ab", "line 1 is not the id of a key and the key"),
        (f"\n../k {base64.b64encode(NEW.secret).decode()}", "line 2 is not the id of a key and the key"),
        ("k-0123456789ab not-base64", "line 1 does not hold 32 bytes in base64"),
        ("k-0123456789ab c2hvcnQ=", "line 1 does not hold 32 bytes in base64"),
        (f"{OLD.id} {base64.b64encode(NEW.secret).decode()}", "line 1 has a key that is not the one its id names"),
        (f"{NEW.line()}\n{OLD.line()}\n{NEW.line()}", "a key stands in it twice"),
    ],
    ids=range(8),  # the keys are made anew in each process, and these names must be the same in all of them
)
def test_a_keyring_that_is_none_says_why_and_quotes_no_key(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        Keyring.of(text)
    assert base64.b64encode(NEW.secret).decode() not in str(refused.value)


def test_a_key_is_not_in_what_is_printed_of_it() -> None:
    printed = repr(Keyring((NEW,)))
    assert NEW.id in printed
    assert not any(form in printed for form in (repr(NEW.secret), NEW.secret.hex(), NEW.line().split()[1]))


def settings(ref: str) -> Settings:
    return Settings(encryption=Encryption(keys=ref))


def test_the_keyring_is_read_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(tmp_path / "none.toml"))
    keyring, file = Keyring((NEW, OLD)), tmp_path / "keyring"
    assert read_keyring(Settings()) is None
    with pytest.raises(ConfigError, match="No such file"):
        read_keyring(settings(f"file:{file}"))
    file.write_text(keyring.text())
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=f"others can read .*chmod 600 {file}"):
        read_keyring(settings(f"file:{file}"))
    file.chmod(0o600)
    assert read_keyring(settings(f"file:{file}")) == keyring
    only = Settings(encryption=Encryption(keys=f"file:{file}", decrypt_only=True))
    assert read_keyring(only) == Keyring(keyring.keys, decrypt_only=True)
    monkeypatch.setenv("KEYRING", keyring.text())
    assert read_keyring(settings("env:KEYRING")) == keyring
    monkeypatch.setenv("KEYRING", "something else")
    with pytest.raises(ConfigError, match=r"env:KEYRING is no keyring: line 1 .*runbooks codec new FILE"):
        read_keyring(settings("env:KEYRING"))
