"""Whether the Ray cluster that a process has joined runs code for anybody who reaches its ports."""

import grpc
import ray

_TIMEOUT_S = 10.0
_ANY_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def refuse_open_cluster(allowed: bool) -> None:
    """Refuse a cluster whose head answers without a token, unless the configuration allows it.

    Args:
        allowed: what the configuration says.

    Raises:
        ValueError: naming the remedy.
    """
    if allowed:
        return
    address = ray.get_runtime_context().gcs_address
    if answers_strangers(address):
        raise ValueError(
            f"the Ray head at {address} has no authentication: whoever reaches it runs code there as its user; start it"
            " with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes a token), or set open_cluster: true in"
            " runtime, workers, drawers or the reward"
        )


def answers_strangers(address: str) -> bool:
    """Return whether the Ray head at `host:port` answers a call that carries no token."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_ANY_CALL)(b"", timeout=_TIMEOUT_S)
        except grpc.RpcError:  # no token, or TLS
            return False
    return True
