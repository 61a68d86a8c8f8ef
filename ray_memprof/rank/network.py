"""Which network interface of its host a rank uses to reach the others, and the message if it does not reach them.

    interface_of("10.99.0.2")                 # "eth0"
    explained(outcome, plan, os.environ)      # adds addresses and interface to the error of a failed connection

By default gloo uses the address that the host's own name resolves to. If that is loopback (127.0.1.1, as Debian writes
into /etc/hosts), a rank listens where no other host can reach it, and connects to itself.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_memprof.rank.messages import Outcome
from ray_memprof.rank.plan import RankPlan

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_CONNECTING = re.compile(
    r"connect|refused|no route|unreachable|timed? ?out|reset by peer|broken pipe|socket", re.IGNORECASE
)
_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "RuntimeError")


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]] | None = None) -> str:
    """Name of the interface of this host that has `address`; "" if none has it.

    Args:
        address: IPv4 or IPv6, as Ray names this node.
        interfaces: as psutil.net_if_addrs() gives them; None: those of this host.
    """
    if interfaces is None:
        import psutil

        interfaces = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        # IPv6 link-local addresses carry their interface behind a percent sign.
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return ""


def socket_variables(interface: str) -> dict[str, str]:
    """The variables that make gloo and NCCL use `interface`; empty if it is not known."""
    # NCCL matches the value as a prefix of interface names. A leading "=" asks for an exact match.
    return {GLOO: interface, NCCL: f"={interface}"} if interface else {}


def explained(outcome: Outcome, plan: RankPlan, environ: Mapping[str, str]) -> Outcome:
    """`outcome`, with the addresses of both ends added if ranks are on several hosts and a connection failed."""
    kind, _, text = outcome.reason.partition(": ")
    if plan.num_nodes < 2 or outcome.status != "failed" or kind not in _TYPES or not _CONNECTING.search(text):
        return outcome
    name = GLOO if plan.config.model.device == "cpu" else NCCL
    interface = environ.get(name, "")
    here = f"{plan.facts.host} at {plan.facts.node_ip}, {name}={interface or '(not set)'}"
    return dataclasses.replace(
        outcome,
        reason=f"{outcome.reason} (this rank: {here}; rank 0: {plan.master_addr}:{plan.master_port})",
        hint=outcome.hint
        or f"no rank reported its own cause. If ranks cannot reach one another, set {name} on each host to the "
        f"interface that reaches the others; the logs of all ranks are in logs/",
    )
