"""pgsnap against the shell pipes it replaces, alternated in one run on one server.

    a     pgsnap backup: zstd inside the archive, age, sha256 of the plain bytes, of the stored ones and of each block; one store
    a2    the same into two stores
    b     pg_dump -Fc -Z zstd:N | age -r | tee >(sha256sum) > file
    b+    b, and then fsync of the file, which pgsnap always does and the shell does not
    c     pg_dump -Fc -Z zstd:N > file
    d     pg_dump | gzip > file, then md5sum: the old recipe

The server is PostgreSQL out of a wheel with fsync off, the same for all; the rows are text, jsonb, numeric, timestamps, uuid and
some bytea, the same at every run. The rounds are interleaved, and what is printed are medians: wall seconds, CPU seconds of the
process and all of its children (the server's own are in nobody's figure), and the peak memory of the pgsnap process alone.

    nox -s bench                                  about 1 GB, three rounds of everything
    nox -s bench -- --size 4GB --only a           memory must not grow with the database
    nox -s bench -- --curve                       levels of compression, inside the archive and outside
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import psycopg

from pgsnap.components.values import format_size, parse_size
from pgsnap_age import Age
from pgsnap_postgres.server import Server, throwaway_server

PGSNAP = str(Path(sys.executable).parent / "pgsnap")
DATABASE = "bench"

# --- the rows ----------------------------------------------------------------------------------------------------------

TABLES = """
CREATE TABLE users (id bigint PRIMARY KEY, key uuid, name text, email text, joined timestamptz, about text);
CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, amount numeric(12,2), tax numeric, state text,
    placed timestamptz, updated timestamptz, lines jsonb);
CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz, session uuid, kind text, payload jsonb);
CREATE TABLE comments (id bigint PRIMARY KEY, author bigint, at timestamptz, body text);
CREATE TABLE files (id bigint PRIMARY KEY, name text, data bytea);
"""
SHARES = {"users": 0.10, "orders": 0.25, "events": 0.35, "comments": 0.25, "files": 0.05}


class Rows:
    """Makes rows as lines of COPY text, the same ones for the same seed."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgk"
        self.words = ["".join(self.random.choices(letters, k=self.random.randint(2, 10))) for _ in range(20_000)]
        weights = [1 / (rank + 3) for rank in range(len(self.words))]  # as in any language: few are frequent, most are rare
        total = 0.0
        self.weights = [total := total + weight for weight in weights]
        self.start = datetime(2024, 1, 1, tzinfo=UTC)

    def text(self, count: int) -> str:
        return " ".join(self.random.choices(self.words, cum_weights=self.weights, k=count))

    def moment(self, n: int) -> str:
        return f"{self.start + timedelta(seconds=n * 7, microseconds=self.random.randrange(10**6))}"

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def users(self, n: int) -> str:
        name = f"{self.text(1).title()} {self.text(1).title()}"
        mail = f"{name.replace(' ', '.').lower()}{n}@{self.random.choice(('example.com', 'example.org', 'mail.example'))}"
        return f"{n}\t{self.uuid()}\t{name}\t{mail}\t{self.moment(n)}\t{self.text(12)}\n"

    def orders(self, n: int) -> str:
        pick = self.random
        lines = [
            {"sku": f"SKU-{pick.randrange(50_000):05}", "quantity": pick.randint(1, 9), "price": pick.randrange(99_999) / 100}
            for _ in range(pick.randint(1, 4))
        ]
        amount = sum(line["quantity"] * line["price"] for line in lines)  # type: ignore[operator]
        state = pick.choice(("open", "paid", "sent", "returned"))
        return (
            f"{n}\t{pick.randrange(10**6)}\t{amount:.2f}\t{amount * 0.19:.6f}\t{state}\t{self.moment(n)}\t{self.moment(n + 9)}"
            f"\t{json.dumps(lines)}\n"
        )

    def events(self, n: int) -> str:
        pick = self.random
        payload = {
            "path": f"/{self.text(1)}/{pick.randrange(10**5)}",
            "agent": pick.choice(("Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1)", "curl/8.11.0")),
            "address": f"10.{pick.randrange(256)}.{pick.randrange(256)}.{pick.randrange(256)}",
            "milliseconds": round(pick.expovariate(0.01), 3),
            "referrer": None if pick.random() < 0.7 else f"https://example.com/{self.text(1)}",
        }
        kind = pick.choice(("view", "click", "search", "login", "purchase"))
        return f"{n}\t{self.moment(n)}\t{self.uuid()}\t{kind}\t{json.dumps(payload)}\n"

    def comments(self, n: int) -> str:
        return f"{n}\t{self.random.randrange(10**6)}\t{self.moment(n)}\t{self.text(self.random.randint(8, 90))}\n"

    def files(self, n: int) -> str:
        return f"{n}\t{self.text(2)}.bin\t\\\\x{self.random.randbytes(self.random.randint(200, 1800)).hex()}\n"

    def blocks(self, table: str, size: int) -> Iterator[bytes]:
        """Yield COPY text of one table until about ``size`` bytes have been made."""
        line: Callable[[int], str] = getattr(self, table)
        made = n = 0
        while made < size:
            block = "".join(line(n + i) for i in range(1000)).encode()
            n, made = n + 1000, made + len(block)
            yield block


def load(server: Server, size: int) -> str:
    """Make the database, about ``size`` bytes of dump text, and return its URL."""
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    rows = Rows()
    with psycopg.connect(server.database_url(DATABASE, socket=True)) as connection:
        connection.execute(TABLES)
        for table, share in SHARES.items():
            with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
                for block in rows.blocks(table, int(size * share)):
                    copy.write(block)
    with psycopg.connect(server.database_url(DATABASE, socket=True), autocommit=True) as connection:
        connection.execute("CREATE INDEX ON orders (customer)")
        connection.execute("VACUUM (ANALYZE, FREEZE)")
        connection.execute("CHECKPOINT")
    return server.database_url(DATABASE, socket=True)


# --- one measurement ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Measured:
    """One run: wall and CPU seconds, peak memory of its first process in bytes, bytes that it left."""

    wall: float
    cpu: float
    peak: int
    size: int


def measure(argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> Measured:
    """Run a command in an empty ``folder``; raise if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()  # what the last one has left in the cache is not this one's
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(argv, env={**os.environ, **environment}, cwd=folder, stdout=output, stderr=output)
        peak, ended, status = 0, 0, 0
        while not ended:
            peak = max(peak, _high_water(process.pid))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not ended:
                time.sleep(0.01)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{shlex.join(argv)} ended with {process.returncode}:\n{output.read().decode(errors='replace')}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak, size)


def _high_water(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


# --- what is compared --------------------------------------------------------------------------------------------------

CONFIG = """
[pipeline.bench.dump]
use = "pg_dump"
url = {{ env = "DATABASE_URL" }}
compress = "{compress}"
{transforms}
{stores}
"""


def config(folder: Path, *, compress: str, transforms: Sequence[str], stores: int = 1) -> str:
    """Write a configuration and return its path."""
    text = CONFIG.format(
        compress=compress,
        transforms="\n".join(f"[[pipeline.bench.transform]]\n{lines}\n" for lines in transforms),
        stores="\n".join(f'[[pipeline.bench.store]]\nurl = "{folder}/run/store-{n}"\n' for n in range(stores)),
    )
    path = folder / f"{abs(hash(text)):x}.toml"
    path.write_text(text)
    return str(path)


def variants(server: Server, url: str, folder: Path, recipient: str, level: int) -> dict[str, list[str]]:
    """Return the commands, by their letters. Without the program age there is no ``b``."""
    age = f'use = "age"\nrecipients = ["{recipient}"]'
    zstd = 'use = "zstd"'
    inside = {"compress": f"zstd:{level}", "transforms": [zstd, age]}
    pg_dump = shlex.join([str(Path(server.bindir) / "pg_dump"), "-d", url])
    commands = {
        "a": [PGSNAP, "--config", config(folder, **inside), "backup"],  # type: ignore[arg-type]
        "a2": [PGSNAP, "--config", config(folder, stores=2, **inside), "backup"],  # type: ignore[arg-type]
        # bash does not wait for >(sha256sum); a named pipe is the same work and is waited for.
        "b": f"mkfifo p; sha256sum <p >sum & {pg_dump} -Fc -Z zstd:{level} | age -r {recipient} | tee p >dump; wait",
        "b+": f"mkfifo p; sha256sum <p >sum & {pg_dump} -Fc -Z zstd:{level} | age -r {recipient} | tee p >dump; wait; sync dump",
        "c": f"{pg_dump} -Fc -Z zstd:{level} >dump",
        "d": f"{pg_dump} | gzip >dump.gz; md5sum dump.gz >dump.md5",
    }
    if shutil.which("age") is None:
        print("The program age is not installed: b and b+ are left out.")
        del commands["b"], commands["b+"]
    shell = ["bash", "-c"]
    return {key: value if isinstance(value, list) else [*shell, f"set -eo pipefail; {value}"] for key, value in commands.items()}


RATIOS = [("a", "b", 1.0), ("a", "b+", None), ("a", "c", 1.15), ("d", "a", 5.0), ("a2", "a", 1.1)]


def compare(commands: Mapping[str, list[str]], rounds: int, environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Run all commands ``rounds`` times, interleaved; print and return the figures."""
    runs: dict[str, list[Measured]] = {key: [] for key in commands}
    for number in range(rounds):
        order = list(commands) if number % 2 == 0 else list(commands)[::-1]
        for key in order:
            runs[key].append(measure(commands[key], environment, folder / "run"))
            print(f"  round {number + 1} {key:>3}: {runs[key][-1].wall:7.2f} s", flush=True)
    middle = {key: statistics.median(run.wall for run in found) for key, found in runs.items()}
    print(f"\n{'':>4} {'median':>9} {'least':>8} {'most':>8} {'CPU':>8} {'stored':>9} {'peak memory':>12}")
    for key, found in runs.items():
        walls = [run.wall for run in found]
        peak = f"{max(run.peak for run in found) / 2**20:.0f} MiB" if key.startswith("a") else ""
        cpu = statistics.median(run.cpu for run in found)
        print(
            f"{key:>4} {middle[key]:7.2f} s {min(walls):6.2f} s {max(walls):6.2f} s {cpu:6.2f} s "
            f"{format_size(found[0].size):>9} {peak:>12}"
        )
    ratios = {}
    for upper, lower, limit in RATIOS:
        if upper in middle and lower in middle:
            ratio = ratios[f"{upper}/{lower}"] = middle[upper] / middle[lower]
            least = min(run.wall for run in runs[upper]) / min(run.wall for run in runs[lower])
            wanted = "" if limit is None else f"   (wanted: {'>=' if upper == 'd' else '<='} {limit:g})"
            print(f"{upper + '/' + lower:>6} {ratio:6.3f}   of the least {least:6.3f}{wanted}")
    return {"runs": {key: [attrs.asdict(run) for run in found] for key, found in runs.items()}, "ratios": ratios}


def curve(server: Server, url: str, folder: Path, recipient: str, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Measure levels of compression: pg_dump alone, and pgsnap with compression inside the archive and outside."""
    age = f'use = "age"\nrecipients = ["{recipient}"]'
    commands: dict[str, list[str]] = {}
    pg_dump = [str(Path(server.bindir) / "pg_dump"), "-d", url, "-Fc", "--no-sync", "-f", "dump"]
    methods = ["zstd:1", "zstd:2", "zstd:3", "zstd:6", "zstd:9", "lz4:1", "gzip:1", "gzip:6", "none"]
    for method in methods:
        commands[f"pg_dump {method}"] = [*pg_dump, f"--compress={method}"]
    for method in ("zstd:1", "zstd:3"):
        path = config(folder, compress=method, transforms=['use = "zstd"', age])
        commands[f"pgsnap inside {method}"] = [PGSNAP, "--config", path, "backup"]
    for name, level in (("zstd", 1), ("zstd", 3), ("zstd", 6), ("zstd", 9), ("gzip", 1), ("gzip", 2), ("gzip", 3)):
        path = config(folder, compress="none", transforms=[f'use = "{name}"\nlevel = {level}', age])
        commands[f"pgsnap outside {name}:{level}"] = [PGSNAP, "--config", path, "backup"]
    found = []
    print(f"{'':26} {'wall':>9} {'CPU':>9} {'stored':>9}")
    for key, argv in commands.items():
        run = measure(argv, environment, folder / "run")
        found.append({"what": key, **attrs.asdict(run)})
        print(f"{key:26} {run.wall:7.2f} s {run.cpu:7.2f} s {format_size(run.size):>9}", flush=True)
    return found


def check_cost(server: Server, url: str, folder: Path, wall: float | None) -> float:
    """Measure the check of the archive's structure alone, on the archive that ``c`` would write; return CPU seconds."""
    from pgsnap_postgres.archive.check import check_archive

    with subprocess.Popen(
        [str(Path(server.bindir) / "pg_dump"), "-d", url, "-Fc", "-Z", "zstd:1"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        chunks = list(iter(lambda: process.stdout.read(1 << 20), b""))  # type: ignore[union-attr]
    started = time.process_time()
    for _ in check_archive(chunks, None):
        pass
    cost = time.process_time() - started
    share = f", {cost / wall:.1%} of a" if wall else ""
    print(f"\nThe check of the archive's structure: {cost:.3f} s of CPU for {format_size(sum(map(len, chunks)))}{share}")
    return cost


def start_up(runs: int = 15) -> dict[str, float]:
    """Measure ``pgsnap --help`` and a bare ``python -c pass``: the best of several, seconds."""
    best = {}
    for name, argv in (("pgsnap --help", [PGSNAP, "--help"]), ("python -c pass", [sys.executable, "-c", "pass"])):
        walls = []
        for _ in range(runs):
            started = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            walls.append(time.perf_counter() - started)
        best[name] = min(walls)
    more = best["pgsnap --help"] - best["python -c pass"]
    print(f"\npgsnap --help: {best['pgsnap --help']:.3f} s, {more:.3f} s more than python -c pass   (wanted: <= 0.15)")
    return best


def main() -> int:
    """Load, measure, print, and write what was measured to ``bench-output/``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="1GB", help="how much dump text to make (1GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--level", type=int, default=1, help="of zstd, the same for all (1)")
    parser.add_argument("--major", type=int, default=17, help="of PostgreSQL; 16 or newer (17)")
    parser.add_argument("--only", default="", help="letters to measure, such as a,b")
    parser.add_argument("--curve", action="store_true", help="measure levels of compression instead")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    chosen = parser.parse_args()
    size = parse_size(chosen.size)
    result: dict[str, Any] = {
        "time": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
        "size": size,
        "level": chosen.level,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }
    with (
        tempfile.TemporaryDirectory(prefix="pgsnap-bench-") as scratch,
        throwaway_server(major=chosen.major, listen=None) as server,
    ):
        folder = Path(scratch)
        recipient = Age.keygen(folder / "key.txt")
        print(f"PostgreSQL {server.major}: loading {format_size(size)} …", flush=True)
        started = time.monotonic()
        url = load(server, size)
        environment = {"DATABASE_URL": url}
        warm = [str(Path(server.bindir) / "pg_dump"), "-d", url, "-Fc", "-Z0"]
        subprocess.run(warm, check=True, stdout=subprocess.DEVNULL)
        print(f"loaded in {time.monotonic() - started:.0f} s\n", flush=True)
        if chosen.curve:
            result["curve"] = curve(server, url, folder, recipient, environment)
        else:
            commands = variants(server, url, folder, recipient, chosen.level)
            if chosen.only:
                commands = {key: commands[key] for key in chosen.only.split(",")}
            result |= compare(commands, chosen.rounds, environment, folder)
            wall = statistics.median(run["wall"] for run in result["runs"]["a"]) if "a" in commands else None
            result["check"] = check_cost(server, url, folder, wall)
            result["start_up"] = start_up()
    chosen.output.mkdir(exist_ok=True)
    path = chosen.output / f"backup-{'curve-' if chosen.curve else ''}{chosen.size}-{result['time']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
