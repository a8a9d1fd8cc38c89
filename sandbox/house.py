"""One sandbox: a stand-in for production on loopback, with its AWS, database, people and two deployed stages.

``House(Path(".sandbox"))`` keeps everything below that directory; several can stand side by side on one machine. A
sandbox is *attached* to the process that brought it up and ends with it, however that ends, or is *detached* and stays
up until :meth:`House.down`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import pymongo.errors
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from activities.releases import LedgerEntry
from activities.stage import Role
from sandbox import connections, mongodb, processes
from sandbox.api import data
from sandbox.api.releases import CATALOGUE
from sandbox.cloud import ROLES, Cloud, CloudError
from sandbox.events import Events
from sandbox.hub.faults import Fault
from sandbox.parts import PARTS, Site
from sandbox.state import STAGES, Layout, State, Vault
from sandbox.supervisor import HouseError, PartStatus, Supervisor, Timing
from sandbox.traffic import Traffic

__all__ = ["DEFAULT_DIRECTORY", "House", "HouseError", "PartStatus", "Timing"]

DEFAULT_DIRECTORY = Path(".sandbox")


class House:
    """One sandbox.

    Args:
        directory: where it keeps everything.
        say: takes the lines meant for the person who started it.
    """

    def __init__(self, directory: Path = DEFAULT_DIRECTORY, say: Callable[[str], None] = print) -> None:
        if not Path("/proc/self/stat").exists():
            raise HouseError("the sandbox needs Linux: it tells its processes apart by what stands in /proc")
        self.layout = Layout(directory)
        self._supervisor = Supervisor(self.layout, say, self._furnish)

    def __enter__(self) -> House:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._supervisor.down_if_owned()

    def up(
        self, parts: Collection[str] = tuple(PARTS), ports: Mapping[str, int] | None = None, *, attached: bool = True
    ) -> Timing:
        """Bring the named parts up, or those of them that are missing.

        Args:
            parts: names from :data:`sandbox.parts.PARTS`.
            ports: ports by name (``temporal``, ``temporal-ui``, ``aws``, ``mongodb``, ``hub``) that must be just these;
                0 means any free one. A port not named is the preferred one, or the next that is free.
            attached: whether the sandbox ends with this process. A repair leaves it as it was.

        Raises:
            HouseError: a part cannot start, or a named port is taken. What this call started is stopped again.
        """
        return self._supervisor.up(parts, ports or {}, attached=attached)

    def down(self) -> list[str]:
        """Stop every part, whoever started it, and whatever it started. Data stays, but AWS keeps none.

        Returns:
            The names of the parts that were there to stop.
        """
        return self._supervisor.down()

    def status(self) -> list[PartStatus]:
        """How each part does, asked now. A part that was started and is gone is ``crashed``."""
        return self._supervisor.status()

    def watch(self) -> None:
        """Stay until Ctrl-C, SIGTERM, or somebody else's ``down``; say once of each part that it crashed.

        Call it from the main thread, inside ``with House(...)``, which then brings the sandbox down.
        """
        self._supervisor.watch()

    def environment(self) -> dict[str, str]:
        """The whole environment of a process that works on this sandbox: the worker, the command line, ``sst``.

        Raises:
            HouseError: the sandbox is not up.
        """
        return connections.environment(self._site())

    def deploy(self, stage: str, release: str = "good", **faults: Any) -> LedgerEntry:
        """Deploy a release to a stage and write it into the deploy ledger.

        Args:
            release: a name from :data:`sandbox.api.releases.CATALOGUE`.
            faults: what else shall be wrong with it, as in :class:`sandbox.api.releases.Faults`.

        Raises:
            HouseError: no such stage, release or fault, or the deployment failed.
        """
        chosen = CATALOGUE.get(release)
        if chosen is None:
            raise HouseError(f"there is no release {release}. The releases are {', '.join(CATALOGUE)}")
        with _one_line(f"could not deploy {release} to {stage}"):
            wanted = chosen.with_faults(f"{release}-with-faults", **faults) if faults else chosen
            return Cloud(self._site("aws")).deploy(self._stage(stage), wanted)

    def fault(self, target: str, mode: str = "http", **options: Any) -> None:
        """Make something fail until :meth:`mend`.

        A fault of the API itself is a deployment: see :meth:`deploy`.

        Args:
            target: ``index/<stage>`` drops the index that the API's list of sessions needs. Anything else is a service
                of the hub (``slack``, ``pagerduty``, ``webhook``, ``github``, ``jira``, ``atlas``), or one name in it.
            mode: how the service fails, with its ``options``, as in :class:`sandbox.hub.faults.Fault`.

        Raises:
            HouseError: no such target, mode or option.
        """
        kind, _, name = target.partition("/")
        with _one_line(f"could not make {target} fail"):
            if kind == "index":
                data.drop_list_index(self._database_uri(name))
                return
            # The switch knows its own modes and options, and says what is wrong with others.
            switch = Fault.model_validate({"target": target, "mode": mode, **options})
            self._hub("POST", "/_control/fail", switch.model_dump(exclude={"used"}))

    def mend(self, target: str) -> None:
        """Undo :meth:`fault`; mending what is whole changes nothing.

        Raises:
            HouseError: the part that it is about is not up.
        """
        kind, _, name = target.partition("/")
        with _one_line(f"could not mend {target}"):
            if kind == "index":
                data.seed(self._database_uri(name))
            else:
                self._hub("DELETE", f"/_control/fail/{quote(target)}")

    def key(self, stage: str, role: Role = "primary") -> str:
        """A key of the stage's API, as it is now."""
        return Cloud(self._site("aws")).key(self._stage(stage), role)

    def url(self, stage: str) -> str:
        """Where the stage's API answers."""
        return Cloud(self._site("aws")).stage(self._stage(stage)).url

    def traffic(
        self,
        stage: str,
        rate: float,
        seconds: float,
        client: int = 0,
        *,
        key: str | None = None,
        name: str = "dashboard",
    ) -> Traffic:
        """Start a client's traffic at a stage; see :class:`sandbox.traffic.Traffic` for its figures.

        Args:
            client: which of the three keys it has: 0 the primary, 1 the backup, 2 the internal one.
            key: a key that it goes on using, whatever the present ones are.
            name: what it calls itself.

        Raises:
            HouseError: no such stage, or a rate or time out of bounds.
        """
        site = self._site("aws")
        with _one_line(f"could not start traffic at {stage}"):
            cloud = Cloud(site)
            url = cloud.stage(self._stage(stage)).url
            own = key or cloud.key(stage, ROLES[client])
            return Traffic(url, rate, own, seconds=seconds, name=name).start()

    def events(self, stage: str) -> Events:
        """The stage's large collection, which migrations are rehearsed on.

        Raises:
            HouseError: no such stage, or the database is not up.
        """
        return Events(self._database_uri(stage))

    def fill(self, stage: str, sessions: int) -> None:
        """Bring the stage's database to so many sessions.

        Raises:
            HouseError: no such stage, or the database is not up.
        """
        data.seed(self._database_uri(stage), sessions)

    def _site(self, *needed: str) -> Site:
        state = State.read(self.layout.state)
        if state is None or state.boot != processes.boot_id():
            raise HouseError(f"no sandbox is up in {self.layout.root}. Bring it up first")
        for name in needed:
            if name not in state.parts or not processes.alive(state.parts[name]):
                raise HouseError(f"{name} is not running. Bring the sandbox up again to start it")
        return Site(self.layout, state.ports, Vault.open(self.layout.vault))

    def _stage(self, name: str) -> str:
        if name not in STAGES:
            raise HouseError(f"there is no stage {name!r}. The stages are {', '.join(STAGES)}")
        return name

    def _database_uri(self, stage: str) -> str:
        site = self._site("mongodb")
        return mongodb.operator_uri(site.ports["mongodb"], site.vault, self._stage(stage))

    def _hub(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        url = self._site("hub").url("hub") + path
        with httpx.Client(trust_env=False) as client:
            answer = client.request(method, url, json=body)
        if answer.is_error:
            raise HouseError(f"the hub refused: {answer.json().get('error')}")

    def _furnish(self, state: State, site: Site, timing: Timing) -> None:
        """Put into a fresh AWS what belongs there, and tell the world where everything is."""
        connections.write_sst(site)
        connections.write_env(site)
        if not {"aws", "mongodb"} <= set(state.parts):
            return
        cloud = Cloud(site)
        current = (state.parts["aws"], site.ports["mongodb"])
        if (state.furnished_aws, state.furnished_mongodb) != current:
            with _one_line("could not set up the stages"):
                self._deploy_all(cloud, timing)
            state.furnished_aws, state.furnished_mongodb = current
            state.write(self.layout.state)
        if set(PARTS) <= set(state.parts):
            connections.write(site, [cloud.stage(name) for name in STAGES])

    def _deploy_all(self, cloud: Cloud, timing: Timing) -> None:
        def deploy(name: str) -> None:
            with timing.step(f"deploy {name}"):
                cloud.deploy(name, CATALOGUE["good"])
                cloud.await_healthy(cloud.stage(name))

        def seed() -> None:
            with timing.step("data"):
                cloud.seed()

        with timing.step("buckets, users, secrets"):
            cloud.furnish()
            cloud.watch()
        with ThreadPoolExecutor(max_workers=len(STAGES) + 1) as pool:
            jobs = [pool.submit(seed), *(pool.submit(deploy, name) for name in STAGES)]
            for job in jobs:
                job.result()


@contextmanager
def _one_line(failed: str) -> Iterator[None]:
    """Turn what the libraries raise into one line for a person. AWS's own text is left out: it can repeat a secret."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise HouseError(f"{failed}: {problems}") from None
    except ClientError as error:
        raise HouseError(f"{failed}: {error.operation_name} was refused, {error.response['Error']['Code']}") from None
    except (BotoCoreError, httpx.HTTPError, pymongo.errors.PyMongoError) as error:
        raise HouseError(f"{failed}: {type(error).__name__}. See 'status' and the logs of the parts") from None
    except (CloudError, ValueError) as error:
        raise HouseError(f"{failed}: {error}") from None
