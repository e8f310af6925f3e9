"""The smallest application of Ray Serve that an example can deploy: it answers the text that it was built with."""

from __future__ import annotations

from typing import Any


class Echo:
    """One replica.

    Args:
        text: What it answers.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    async def __call__(self, request: Any) -> dict[str, Any]:
        """Answer any request."""
        del request
        return {"ok": True, "text": self._text}


def app(args: dict[str, Any]) -> Any:
    """Return the application; Serve calls this on the cluster.

    Args:
        args: ``{"text": "hello"}``.
    """
    from ray import serve

    deployment: Any = serve.deployment(name="Echo", ray_actor_options={"num_cpus": 0.1})(Echo)
    return deployment.bind(args["text"])
