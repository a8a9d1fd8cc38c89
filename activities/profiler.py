"""The profiler of a stage's database: switched on for a while, read, and put back as it was.

The profiler is per database; its threshold is per server. Slow queries leave this module as forms, without the values
that they asked for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pymongo
import pymongo.errors
from temporalio import activity

from activities.atlas_advisor import AtlasAdvisor
from activities.errors import classified
from activities.migrations import Base, connect, winning
from activities.secret_refs import SecretResolver
from activities.slow_queries import Form, form_of, lacks_index, missing_index, sorts_in_memory, without_values
from activities.stage import Stage
from activities.symptom_models import ProfilerLevel, SetProfiler, SlowAsked, SlowQueries, SlowQuery

_UNAUTHORIZED, _NOT_SUPPORTED, _NO_SUCH_COMMAND, _ATLAS_ERROR = 13, 115, 59, 8000
_REFUSALS = frozenset({_UNAUTHORIZED, _NOT_SUPPORTED, _NO_SUCH_COMMAND, _ATLAS_ERROR})
_TIMED_OUT = 50
_MOST_ENTRIES = 2000
_FORMS = 8
"""Forms whose plan is looked at: those with the most time together."""
_PLANS_MS = 10_000
"""For the plans of one call together. Some are found by running the query, on a database that may be in trouble."""

Entry = dict[str, Any]


class Profiler:
    def __init__(self, resolver: SecretResolver, atlas: AtlasAdvisor) -> None:
        self._resolver = resolver
        self._atlas = atlas

    @activity.defn(name="profiler.level")
    @classified("ask how the database profiles")
    def level(self, stage: Stage) -> ProfilerLevel:
        """How it profiles now. A server that does not let it be asked or changed (a shared Atlas tier, a user without
        ``dbAdmin``) is a finding, not an error."""
        with connect(self._resolver, _as_operator(stage)) as client:
            server = _server(client)
            base = client.get_database(stage.database.name)
            try:
                now = base.command({"profile": -1})
                # To set what is set already shows whether it may be set.
                base.command({"profile": int(now["was"]), "slowms": int(now.get("slowms", 100))})
            except pymongo.errors.OperationFailure as error:
                if error.code not in _REFUSALS:
                    raise
                why = "the user lacks dbAdmin" if error.code == _UNAUTHORIZED else "the server does not let it be set"
                return ProfilerLevel(summary=f"the profiler cannot be used: {why}", server=server)
        level, slow_ms = int(now["was"]), int(now.get("slowms", 100))
        return ProfilerLevel(
            summary=f"profiling level {level}, slower than {slow_ms} ms ({server})",
            level=level,
            slow_ms=slow_ms,
            sample_rate=float(now.get("sampleRate", 1.0)),
            server=server,
        )

    @activity.defn(name="profiler.set")
    @classified("set the profiler")
    def set(self, order: SetProfiler) -> ProfilerLevel:
        """Set level and threshold to exactly these."""
        with connect(self._resolver, _as_operator(order.stage)) as client:
            command = {"profile": order.level, "slowms": order.slow_ms, "sampleRate": order.sample_rate}
            client.get_database(order.stage.database.name).command(command)
            server = _server(client)
        return ProfilerLevel(
            summary=f"profiling level {order.level}, slower than {order.slow_ms} ms",
            level=order.level,
            slow_ms=order.slow_ms,
            sample_rate=order.sample_rate,
            server=server,
        )

    @activity.defn(name="profiler.slow")
    @classified("read the slow queries")
    def slow(self, asked: SlowAsked) -> SlowQueries:
        """Slow queries of the profiler, by form, with the plan of each and the index that it lacks.

        Where there is no profile to read, Atlas's own log of slow queries is asked, if the stage names its cluster.
        """
        stage, source = asked.stage, "profiler"
        with connect(self._resolver, _as_operator(stage)) as client:
            base = client.get_database(stage.database.name)
            server = _server(client)
            entries = _profiled(base, asked)
            if entries is None:
                entries, source = self._atlas.slow_queries(asked), "atlas"
            if entries is None:
                return SlowQueries(
                    summary="slow queries are not known: no profiler and no Atlas to ask", source="none", server=server
                )
            found = by_form(entries)
            until = time.monotonic() + _PLANS_MS / 1000
            queries = tuple(_with_plan(base, form, alike, until) for form, alike in found[:_FORMS])
        total = sum(_millis(entry) for _, alike in found for entry in alike)
        count = sum(len(alike) for _, alike in found)
        seconds = (asked.until - asked.since).total_seconds()
        lacking = [one for one in queries if one.missing]
        line = f"{count} queries of {asked.over.total_seconds() * 1000:.0f} ms or more in {seconds:.0f} s"
        if queries:
            line += f"; most time in {queries[0].collection}.{queries[0].form} ({queries[0].plan or 'plan not known'})"
        if lacking:
            line += f"; {len(lacking)} forms lack an index"
        if unknown := sum(query.plan is None for query in queries):
            line += f"; the plans of {unknown} forms are not known"
        return SlowQueries(
            summary=f"{line} ({source}, {server})",
            source="atlas" if source == "atlas" else "profiler",
            count=count,
            total_ms=round(total, 1),
            seconds=seconds,
            queries=queries,
            server=server,
        )


def _as_operator(stage: Stage) -> Stage:
    """The stage with the user who may profile, where one is named."""
    if stage.database.operator_uri is None:
        return stage
    return stage.model_copy(update={"database": stage.database.model_copy(update={"uri": stage.database.operator_uri})})


def _server(client: pymongo.MongoClient[Entry]) -> str:
    build = client.get_database("admin").command("buildInfo")
    if "secantusVersion" in build:
        return f"embedded SecantusDB {build['secantusVersion']}, not MongoDB"
    return f"MongoDB {build.get('version', 'of unknown version')}"


def _profiled(base: Base, asked: SlowAsked) -> list[Entry] | None:
    """What the profiler recorded; None where there is no profile, or it may not be read."""
    try:
        if base.command({"profile": -1})["was"] == 0 and "system.profile" not in base.list_collection_names():
            return None
        query = {
            "ts": {"$gte": asked.since, "$lte": asked.until},
            "millis": {"$gte": asked.over.total_seconds() * 1000},
        }
        found = base["system.profile"].find(query, sort=[("ts", pymongo.DESCENDING)], limit=_MOST_ENTRIES)
        return [entry for entry in found if entry.get("appName") != "operational-runbooks"]
    except pymongo.errors.OperationFailure as error:
        if error.code in _REFUSALS:
            return None
        raise


def by_form(entries: list[Entry]) -> list[tuple[Form, list[Entry]]]:
    """The entries of each form, the form with the most time together first."""
    alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    forms: dict[tuple[str, str], Form] = {}
    for entry in entries:
        form = form_of(str(entry.get("ns", "")), entry.get("command") or {})
        if form is None:
            continue
        key = (form.collection, form.described())
        forms.setdefault(key, form)
        alike[key].append(entry)
    return sorted(((forms[key], found) for key, found in alike.items()), key=lambda pair: -sum(map(_millis, pair[1])))


def _millis(entry: Entry) -> float:
    return float(entry.get("millis", 0))


def _with_plan(base: Base, form: Form, alike: list[Entry], until: float) -> SlowQuery:
    times = [_millis(entry) for entry in alike]
    longest = max(alike, key=_millis)
    examined, returned = longest.get("docsExamined"), longest.get("nreturned")
    told = form.kind == "find" and examined is not None and returned is not None
    explained = _explain(base, form, until, runs=not told)
    if not told:
        stats = explained.get("executionStats", {})
        examined, returned = stats.get("totalDocsExamined"), stats.get("nReturned")
    plan, index = winning(explained)
    sorts = sorts_in_memory(explained)
    slow = SlowQuery(
        collection=form.collection,
        form=form.described(),
        count=len(times),
        average_ms=round(sum(times) / len(times), 1),
        longest_ms=max(times),
        total_ms=round(sum(times), 1),
        plan=plan,
        index=index,
        sorts_in_memory=sorts,
        examined=None if examined is None else int(examined),
        returned=None if returned is None else int(returned),
        filter=without_values(form.filter),
        sort=form.sort,
    )
    if not lacks_index(plan, sorts, slow.examined, slow.returned):
        return slow
    proposal = missing_index(form, base[form.collection].list_indexes())
    return slow.model_copy(update={"missing": proposal.keys, "note": proposal.note})


def _explain(base: Base, form: Form, until: float, *, runs: bool) -> Entry:
    """What the server says of its plan for just this query; nothing where it may not be asked, or time is over.

    Args:
        runs: Run the query, too, in half of the time that is left, to see what it reads.
    """
    find: Entry = {"find": form.collection, "filter": dict(form.filter), "limit": 20}
    if form.sort:
        find["sort"] = dict(form.sort)
    for verbosity in ("executionStats", "queryPlanner")[not runs :]:
        left = int((until - time.monotonic()) * 1000) // (2 if verbosity == "executionStats" else 1)
        if left < 1:
            break
        try:
            return dict(base.command({"explain": find, "verbosity": verbosity, "maxTimeMS": left}))
        except pymongo.errors.OperationFailure as error:
            if error.code not in (_UNAUTHORIZED, _TIMED_OUT):
                raise
    return {}
