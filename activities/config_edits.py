"""The places in a repository's files where the function's capacity stands, read and changed as text. Pure functions.

Only values that stand there literally are found; what is computed is left to people, and said.
"""

from __future__ import annotations

import re

from activities.function_capacity import Setting

_MEMORY = re.compile(r'(?P<head>\bmemory(?:Size)?:\s*)(?P<quote>["\']?)(?P<value>\d+)(?P<unit>\s*(?:MB|GB))?(?P=quote)')
_MAX_POOL = re.compile(r"(?P<head>\bmaxPoolSize:\s*)(?P<value>\d+)")
_MIN_POOL = re.compile(r"(?P<head>\bminPoolSize:\s*)(?P<value>\d+)")
_PROVISIONED = re.compile(r"(?P<head>\b(?:provisioned|provisionedConcurrentExecutions):\s*)(?P<value>\d+)")


class NotFoundError(ValueError):
    """The text has no such value, or several; the message is for people."""


def read(text: str, setting: Setting) -> Setting:
    """What the text says of the figures that ``setting`` names.

    Raises:
        NotFoundError: it does not say one of them exactly once.
    """
    found: dict[str, int] = {}
    if setting.memory_mb is not None:
        place = _once(_MEMORY, text, 'memory, such as memory: "512 MB"')
        found["memory_mb"] = int(place["value"]) * (1024 if "GB" in (place["unit"] or "") else 1)
    if setting.provisioned is not None:
        place_of = list(_PROVISIONED.finditer(text))
        found["provisioned"] = int(_once(_PROVISIONED, text, "provisioned")["value"]) if place_of else 0
    if setting.max_pool_size is not None:
        found["max_pool_size"] = int(_once(_MAX_POOL, text, "maxPoolSize, such as maxPoolSize: 100")["value"])
    if setting.min_pool_size is not None:
        found["min_pool_size"] = int(_once(_MIN_POOL, text, "minPoolSize, such as minPoolSize: 10")["value"])
    return Setting.model_validate(found)


def write(text: str, setting: Setting) -> str:
    """The text with the figures of ``setting`` in it.

    Raises:
        NotFoundError: there is no place for one of them.
    """
    if setting.memory_mb is not None:
        _once(_MEMORY, text, 'memory, such as memory: "512 MB"')
        text = _MEMORY.sub(lambda place: _memory(place, setting.memory_mb), text)
    if setting.provisioned is not None:
        text = _provisioned(text, setting.provisioned)
    for pattern, value, name in (
        (_MAX_POOL, setting.max_pool_size, "maxPoolSize"),
        (_MIN_POOL, setting.min_pool_size, "minPoolSize"),
    ):
        if value is not None:
            _once(pattern, text, f"{name}, such as {name}: 10")
            text = pattern.sub(rf"\g<head>{value}", text)
    return text


def _memory(place: re.Match[str], memory_mb: int | None) -> str:
    unit = " MB" if place["unit"] else ""
    return f"{place['head']}{place['quote']}{memory_mb}{unit}{place['quote']}"


def _provisioned(text: str, executions: int) -> str:
    if _PROVISIONED.search(text):
        _once(_PROVISIONED, text, "provisioned")
        return _PROVISIONED.sub(rf"\g<head>{executions}", text)
    if executions == 0:
        return text
    place = _once(_MEMORY, text, "memory, beside which provisioned concurrency would be written")
    start = text.rfind("\n", 0, place.start()) + 1
    indent = text[start : place.start()]
    line = f"{indent}concurrency: {{ provisioned: {executions} }},\n"
    end = text.find("\n", place.end()) + 1
    return text[:end] + line + text[end:]


def _once(pattern: re.Pattern[str], text: str, what: str) -> re.Match[str]:
    places = list(pattern.finditer(text))
    if len(places) != 1:
        raise NotFoundError(f"{len(places) or 'no'} places with {what}: one is needed")
    return places[0]
