"""Which rank made a run fail: weighs all errors that arrived within the grace, and names the culprit in one line.

    verdict = judge([Loss(rank=2, kind="died", node="a"), ...], nodes=("a", "a", "b", "b"))

Pure. The first error is not always the cause: a rank may report a broken connection to another rank before the death of
that rank is known.
"""

import re
import signal
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ray_memprof import errors
from ray_memprof.rank.messages import Outcome, Status
from ray_memprof.recorder.status import Beat
from ray_memprof.store.run_files import log_name
from ray_memprof.wording import error_line, rank_text

LossKind = Literal["died", "unreachable", "node", "host_oom"]
"""How a rank was lost that could not report itself: its process ended, it cannot be reached, its node is gone, or the
memory of its host was full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A rank that ended without an Outcome."""

    rank: int
    kind: LossKind
    detail: str = ""
    """One line of Ray's text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a run ended."""

    status: Status
    exit_code: int = 0
    reason: str = ""
    """One line; empty if the run ended well."""
    hint: str = ""
    ranks: tuple[int, ...] = ()
    """The culprits."""
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    """By rank, of every rank that reported its own end."""
    losses: Mapping[int, Loss] = field(default_factory=dict)
    """By rank, of every rank that ended without a report."""
    beats: Mapping[int, Beat] = field(default_factory=dict)
    """The last beat of each rank."""
    stacks: Mapping[int, str] = field(default_factory=dict)
    """By rank, where it was, of the ranks that answered; the ranks are asked only after a stall."""


# A higher weight means a likelier cause: a lost node ends its ranks, a full host kills processes, a death makes other
# ranks fail. An unreachable rank may turn out to be dead, so it weighs less than a rank that reported its own error.
_PEER, _UNREACHABLE, _FAILED, _DIED, _OOM, _HOST_OOM, _NODE = range(7)
_LOSS_WEIGHTS: Mapping[LossKind, int] = {
    "unreachable": _UNREACHABLE,
    "died": _DIED,
    "host_oom": _HOST_OOM,
    "node": _NODE,
}

# Errors of a rank whose peer is gone, as gloo, NCCL and the store of torch 2.11 to 2.13 write them. Code that reads a
# file or talks to a server may write some of these words too, so they count only if one of the three wrote them.
_GONE = re.compile(
    r"connection (was )?(likely )?(reset|closed|refused|aborted)|broken pipe|socket ?timeout|wait timeout"
    r"|(timed|timeout) out (after \d+|waiting)|remote process|remote ?error|end of file|(recv|send)\w*\W+failed"
    r"|failed to (recv|send|connect|pass)|closed by (remote )?peer|operation timeout|communicator was aborted"
    r"|pair closure|store->get|Original reason for failure",
    re.IGNORECASE,
)
_SAID_BY_GLOO = re.compile(
    r"gloo/(transport|rendezvous|common)/|\[c10d\]|TCPStore|monitoredBarrier|NCCL|\bGloo \w+"
)
# Errors of the store that are not about a peer: its port is in use, or this user may not use it.
_OWN_NETWORK = re.compile(
    r"EADDRINUSE|EACCES|failed to (listen|bind)|address already in use|permission denied", re.IGNORECASE
)
# NCCL reports a rank's own errors (wrong use, device, bug) with the same class as errors about peers.
_OWN_NCCL = re.compile(
    r"nccl(InvalidUsage|InvalidArgument|UnhandledCudaError|InternalError)|invalid usage|unhandled cuda error"
)
_SHORT = frozenset(("Socket Timeout", "Connection reset by peer", "Broken pipe", "Connection closed by peer"))
"""Texts that torch's store and gloo write without naming themselves."""


def is_peer_error(outcome: Outcome) -> bool:
    """Whether a rank's error only says that another rank is gone."""
    kind, _, text = outcome.reason.partition(": ")
    if kind == "DistStoreError":
        return True
    if kind == "DistNetworkError":
        return _OWN_NETWORK.search(text) is None
    if kind == "DistBackendError":
        return _OWN_NCCL.search(text) is None and _GONE.search(text) is not None
    is_theirs = text in _SHORT or _SAID_BY_GLOO.search(text) is not None
    return kind == "RuntimeError" and is_theirs and _GONE.search(text) is not None


def is_unclear(news: Sequence[Outcome | Loss]) -> bool:
    """Whether the cause is not known yet: there are only errors about other ranks, or a node may be gone."""
    weights = [_weight(one) for one in news]
    return max(weights) <= _UNREACHABLE or _NODE in weights or _UNREACHABLE in weights


def may_be_node(news: Sequence[Outcome | Loss]) -> bool:
    """Whether the loss of a node could explain all that is known: no rank has reported a cause of its own."""
    return max(map(_weight, news)) in (_PEER, _UNREACHABLE, _DIED, _NODE)


def died_together(news: Sequence[Outcome | Loss], nodes: Sequence[str], ranks: Collection[int]) -> bool:
    """Whether all ranks of a node have died, counting only ranks in `ranks` and only nodes with several ranks."""
    gone = Counter(nodes[one.rank] for one in news if isinstance(one, Loss) and one.rank in ranks)
    return any(num_gone == nodes.count(node) > 1 for node, num_gone in gone.items())


def judge(news: Sequence[Outcome | Loss], nodes: Sequence[str], lost: Collection[int] = ()) -> Verdict:
    """The verdict on failures.

    Args:
        news: in the order in which it arrived.
        nodes: name of the node of each rank.
        lost: ranks whose node is known to be gone, whether or not they are in `news`.
    """
    known = _nodes_lost(news, nodes, lost)
    losses = {one.rank: one for one in known if isinstance(one, Loss)}
    outcomes = {one.rank: one for one in known if isinstance(one, Outcome)}
    heaviest = max(_weight(one) for one in known)
    culprits = [one for one in known if _weight(one) == heaviest]
    ranks = tuple(sorted(one.rank for one in culprits))
    first = culprits[0]
    if isinstance(first, Outcome):
        alike = [one.rank for one in culprits if isinstance(one, Outcome) and one.reason == first.reason]
        status, code, reason, hint = _from_outcome(first, sorted(alike), heaviest)
    else:
        status, code, reason, hint = _lost(first, ranks, nodes)
        if first.kind == "died":
            hint += _beside(outcomes.values())
    return Verdict(
        status=status, exit_code=code, reason=reason, hint=hint, ranks=ranks, outcomes=outcomes, losses=losses
    )


def interruption(number: int) -> Verdict:
    """The verdict on a run that signal `number` ended."""
    name = signal.Signals(number).name
    return Verdict(status="interrupted", exit_code=128 + number, reason=f"interrupted by {name}")


def verdict_of(error: errors.RunError, *, has_started: bool) -> Verdict:
    """The verdict on a run that ended by `error` of the driver; `has_started`: after its ranks had run."""
    status: Status = "failed" if has_started else "never_started"
    return Verdict(status=status, exit_code=error.exit_code, reason=str(error), hint=error.hint)


def verdict_of_bug(error: BaseException, log: Path) -> Verdict:
    """The verdict on a run that ended by a bug of ray-memprof; `log` holds the traceback."""
    return Verdict(
        status="failed",
        exit_code=errors.EXIT_BUG,
        reason=f"internal error: {error_line(error)}",
        hint=f"please report it, with {log}",
    )


def _weight(one: Outcome | Loss) -> int:
    if isinstance(one, Loss):
        return _LOSS_WEIGHTS[one.kind]
    if one.status in ("oom", "host_oom"):
        return _OOM if one.status == "oom" else _HOST_OOM
    return _PEER if is_peer_error(one) else _FAILED


def _nodes_lost(
    news: Sequence[Outcome | Loss], nodes: Sequence[str], lost: Collection[int]
) -> list[Outcome | Loss]:
    """The same news, with a node as the cause if it is lost; ranks in `lost` without news are added at the end."""
    gone = {one.rank: one.kind for one in news if isinstance(one, Loss)}
    heard = {one.rank for one in news}
    found: list[Outcome | Loss] = []
    for one in news:
        if isinstance(one, Outcome):
            if one.rank in lost and _weight(one) == _PEER:
                one = Loss(rank=one.rank, kind="node", detail=one.reason)
        elif one.kind != "host_oom":
            mates = {rank for rank, node in enumerate(nodes) if node == nodes[one.rank]}
            kinds = {gone.get(mate) for mate in mates}
            # Ray says that the node died, or all its ranks are unreachable. Both are wrong if a rank of it still works.
            is_lost = ("node" in kinds and heard >= mates) or (
                "unreachable" in kinds and gone.keys() >= mates
            )
            kind: LossKind = "node" if is_lost or one.rank in lost else "died"
            one = Loss(rank=one.rank, kind=kind, detail=one.detail)
        found.append(one)
    return found + [Loss(rank=rank, kind="node") for rank in sorted(set(lost) - heard)]


def _from_outcome(outcome: Outcome, ranks: Sequence[int], weight: int) -> tuple[Status, int, str, str]:
    """Status, exit code, reason and hint for ranks that reported the same error themselves."""
    hint = outcome.hint or f"the traceback is in {log_name(outcome.rank)}"
    if weight == _PEER and not outcome.hint:
        hint = f"it lost another rank, and none reported why; the logs of all ranks are beside {log_name(outcome.rank)}"
    # Errors of the rank's store begin with the name of the rank already.
    reason = outcome.reason.removeprefix(f"{rank_text((outcome.rank,))}: ")
    return outcome.status, outcome.exit_code, f"{rank_text(ranks)}: {reason}", hint


def _lost(first: Loss, ranks: tuple[int, ...], nodes: Sequence[str]) -> tuple[Status, int, str, str]:
    """Status, exit code, reason and hint for ranks that could not report."""
    who = rank_text(ranks)
    if first.kind == "node":
        lost = sorted({nodes[rank] for rank in ranks})
        reason = f"node {', '.join(lost)} lost, with {who}"
        return (
            "lost",
            errors.EXIT_NODE_LOST,
            reason,
            "what it had written is missing unless the run folder is shared",
        )
    if first.kind == "host_oom":
        reason = f"{who}: node {nodes[first.rank]} out of host memory: {first.detail}"
        hint = "fewer ranks a node, model_config.load_strategy: stream, or more host memory"
        return "host_oom", errors.EXIT_HOST_OOM, reason, hint
    reason = f"{who}: process died" + (f": {first.detail}" if first.detail else "")
    log = log_name(first.rank)
    hint = (
        f"the cause may be at the end of {log}; if not, it was killed: by the kernel for lack of memory (dmesg), "
        "or by hand"
    )
    return "died", errors.EXIT_RANK_DIED, reason, hint


def _beside(outcomes: Iterable[Outcome]) -> str:
    """What the hint adds about a rank that reported an error of its own beside the death; "" if there is none.

    Either may have caused the other, and the order of the news does not decide it: a rank seals its records before it
    reports, and Ray reports a death at once or, on a busy host, a second later.
    """
    own = next((one for one in outcomes if _weight(one) == _FAILED), None)
    return "" if own is None else f"; rank {own.rank} failed too, perhaps first: {own.reason}"
