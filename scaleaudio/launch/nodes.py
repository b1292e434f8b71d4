"""The cluster that RAY_ADDRESS names: whether it answers, and what each of its machines has and reaches."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scaleaudio.launch.apart import Asked, Finding, examine
from scaleaudio.launch.reach import clock_finding, witnessed

HERE = ["scaleaudio.launch.machine:" + name for name in ("python", "limits", "memory", "gpus", "deepspeed")]
REACH = ["scaleaudio.launch.reach:" + name for name in ("data", "out")]
_COMPARED = ("python", "scaleaudio", "torch", "ray", "deepspeed")
_MAX_LINES = 40


def ray(asked: Asked) -> Iterator[Finding]:
    """The findings about the cluster, and about all of its machines that are not this one."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("ray", "ok", "RAY_ADDRESS is not set: each run starts a Ray of its own on this machine")
        return
    if address.startswith(("http://", "https://")):
        fix = "That is the address for `ray job submit`; leave it unset here, or run this verb as a job."
        yield Finding("ray", "fail", f"RAY_ADDRESS {address}: the dashboard's address, which no program can join", fix)
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: no connection, other versions, a refused token
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fix = "Is it up, the address right, the way open, RAY_AUTH_TOKEN the cluster's, Ray of the same version?"
        yield Finding("ray", "fail", f"RAY_ADDRESS {address}: {' '.join(lines[:2])}", fix)
        return
    alive = _names([node for node in ray.nodes() if node["Alive"]])
    there = ray.cluster_resources()
    size = ", ".join(f"{there.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    text = f"{address}: {len(alive)} node(s), {size}, Ray {ray.__version__}"
    yield Finding("ray", "ok", text, facts={"nodes": sorted(alive.values()), "ray": ray.__version__})
    own = _relative(asked)
    yield from own
    refused = {finding.facts["url"] for finding in own}
    asked = replace(asked, data=tuple(url for url in asked.data if url not in refused))
    with witnessed(replace(asked, out=None if asked.out in refused else asked.out)) as asked:
        yield from _compared(*_of_all(ray, asked, alive))


def _relative(asked: Asked) -> list[Finding]:
    """A failure for each path that a run would refuse, since it is another folder on each machine."""
    from scaleaudio.launch.cluster import relative  # loads Ray

    named = {f"data {place}": url for place, url in enumerate(asked.data)}
    named |= {} if asked.out is None else {"out": asked.out}
    fix = "Give a URL that every node reaches (s3://...), or a path that all machines share."
    return [
        Finding(
            key.partition(" ")[0],
            "fail",
            f"{url}: a relative path is another folder on each machine",
            fix,
            {"url": url},
        )
        for key, url in relative(named).items()
    ]


def _names(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """By its id, what a node is called: its address, and where several are on one machine, the start of its id too."""
    count = Counter(node["NodeManagerAddress"] for node in nodes)
    names = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
    return {node: name if count[name] == 1 else f"{name} ({node[:8]})" for node, name in names.items()}


class _Clock:
    def now(self) -> float:
        """The driver's time."""
        return time.time()


def _examined(asked: Asked, clock: Any) -> tuple[list[Finding], float, float]:
    """A node's findings, how far its clock is ahead of the driver's, and to how many seconds that is certain."""
    import ray

    findings = list(examine([*HERE, *(REACH if asked.data else REACH[1:])], asked))
    best, skew = float("inf"), 0.0
    for _ in range(5):
        before = time.time()
        theirs = ray.get(clock.now.remote())
        after = time.time()
        if after - before < best:
            best, skew = after - before, (before + after) / 2 - theirs
    return findings, skew, best / 2


def _of_all(ray: Any, asked: Asked, alive: dict[str, str]) -> tuple[dict[str, list[Finding]], list[Finding]]:
    """The findings by node, and those about nodes that gave none."""
    here = ray.get_runtime_context().get_node_id()
    clock = ray.remote(_Clock).options(num_cpus=0, label_selector={"ray.io/node-id": here}).remote()
    task = ray.remote(_examined)
    asking = {
        task.options(num_cpus=0, max_retries=0, label_selector={"ray.io/node-id": node}).remote(asked, clock): address
        for node, address in alive.items()
    }
    done, late = ray.wait(list(asking), num_returns=len(asking), timeout=2 * asked.seconds + 15)
    lost = [
        Finding("node", "fail", f"{asking[ref]}: no answer", "Look at it, or take it out of the cluster.")
        for ref in late
    ]
    found: dict[str, list[Finding]] = {}
    for ref in done:
        name = asking[ref]
        try:
            findings, skew, certain_to = ray.get(ref)
        except Exception as error:  # the task's own, or its machine's death
            last = str(error).strip().splitlines()[-1]
            fix = "Give every node this program: one image for all, or `ray job submit --working-dir .`."
            lost.append(Finding("node", "fail", f"{name}: {last}", fix))
            continue
        found[name] = [*findings, clock_finding(skew, "the driver's", certain_to)]
    return found, lost


def _compared(found: dict[str, list[Finding]], lost: list[Finding]) -> Iterator[Finding]:
    """A line for all nodes that are well, one for each kind of complaint, and what is not the same on all."""
    yield from lost
    complaints: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, findings in sorted(found.items()):
        for finding in findings:
            if finding.status != "ok":
                complaints[finding.check, finding.status, finding.text, finding.fix].append(name)
    for (check, status, text, fix), names in list(complaints.items())[:_MAX_LINES]:
        yield Finding(check, status, f"{_some(names)}: {text}", fix, {"nodes": names})  # type: ignore[arg-type]
    if len(complaints) > _MAX_LINES:
        yield Finding("node", "warn", f"and {len(complaints) - _MAX_LINES} more such lines", "Mend these first.")
    well = [name for name, findings in found.items() if all(finding.status == "ok" for finding in findings)]
    if well:
        yield Finding(
            "node",
            "ok",
            f"{len(well)} of {len(found) + len(lost)} node(s) have all that is asked for",
            facts={"nodes": well},
        )
    versions: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in _COMPARED}
    for name, findings in sorted(found.items()):
        for finding in findings:
            for package, version in finding.facts.get("versions", {}).items():
                if package in versions:
                    versions[package][version].append(name)
    for package, by_version in versions.items():
        if len(by_version) > 1:
            text = ", ".join(f"{version} on {_some(names)}" for version, names in by_version.items())
            yield Finding("versions", "fail", f"{package}: {text}", "One image, or one lock, for all nodes.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
