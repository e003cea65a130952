"""List known vulnerabilities in the package's dependencies, in the versions that are installed
here, by pip-audit.

    python tools/audit.py [arguments of pip-audit, as --vulnerability-service osv]

Exits with 1 for a vulnerability that another release fixes; those without a fix are only named.
What it cannot check, it skips and says so: without a network nothing fails. It also checks a
release that is known to be vulnerable: no finding on it means that the service does not answer.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DECLARED = "rmadapter[demo,report,parquet,data,export,serve,app]"
CANARY = "django==3.0"
SECONDS, PATIENCE = 60, 5  # for all, and for each answer


def installed(declared: str) -> dict[str, str]:
    """Return name -> version of a requirement's dependencies and theirs, without the requirement
    itself."""
    versions: dict[str, str] = {}
    todo = [Requirement(declared)]
    seen = set[str]()
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        distribution = metadata.distribution(wanted.name)
        versions[canonicalize_name(wanted.name)] = Version(
            distribution.version
        ).public  # +cpu is not published
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)
            ):
                todo.append(needed)
    del versions[canonicalize_name(Requirement(declared).name)]
    return versions


def ask(lines: list[str], words: list[str]) -> list[dict[str, Any]] | str:
    """Ask pip-audit about each `name==version`; return its answer, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "all.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", f"{folder}/all.txt", "--no-deps",
            "--disable-pip",
        ]  # fmt: skip
        command += [
            "--format", "json", "--progress-spinner", "off", "--timeout", str(PATIENCE), *words,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False
            )
            reports: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except subprocess.TimeoutExpired:
            return f"no answer within {SECONDS} seconds"
        except (ValueError, KeyError, TypeError):  # no JSON, or of another shape
            return (done.stderr.strip() or "no answer").splitlines()[-1]
    canary = next((one for one in reports if one["name"] == Requirement(CANARY).name), {})
    if not canary.get("vulns"):
        return f"nobody knows a hole in {CANARY} ({canary.get('skip_reason', 'no reason given')})"
    return [one for one in reports if one is not canary]


def main(words: list[str]) -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: pip-audit is not installed; make setup", file=sys.stderr)
        return 2
    lines = [f"{name}=={version}" for name, version in sorted(installed(DECLARED).items())]
    reports = ask([*lines, CANARY], words)
    if isinstance(reports, str):
        print(f"audit: skipped, for the vulnerability service does not answer: {reports}")
        return 0
    closed = 0
    for one in reports:
        if "skip_reason" in one:
            print(f"audit: not asked about: {one['skip_reason']}")
        for hole in one.get("vulns", ()):
            fixed = ", ".join(hole["fix_versions"])
            closed += bool(fixed)
            names = ", ".join(sorted([hole["id"], *hole["aliases"]]))
            print(
                f"audit: {one['name']} {one['version']} has {names}; "
                + (f"take {fixed}" if fixed else "no fix yet")
            )
    print(f"audit: {len(reports)} packages; holes that another release closes: {closed}")
    return int(closed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
