"""A method under a reset policy: what goes from case to case, and can be put back to where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import GrataError
from ..methods import Method, StepRecord
from .resets import PerCase, ResetPolicy, make_reset

__all__ = ["Learner"]


class Learner:
    """A method and the policy that decides before each case whether it starts from the source network again.

    Args:
        method: method that adapts its network.
        reset: policy, its name, or a mapping of ``name`` and its settings; None: as the method's paper has it. A method
            that learns nothing is never reset.

    Raises:
        GrataError: the policy is unknown, a setting of it is refused, or it could never act on the method.
    """

    def __init__(self, method: Method, reset: ResetPolicy | str | Mapping[str, Any] | None = None) -> None:
        self.method = method
        given = method.asked_reset if reset is None else reset
        made = make_reset(("per-case" if method.card.episodic else "never") if given is None else given)
        self.policy = made if method.learns or method.card.episodic else make_reset("never")
        self.policy.check(method)

    @property
    def episodic(self) -> bool:
        """Whether every case starts from the source network."""
        return isinstance(self.policy, PerCase)

    def begin(self, site: str | None) -> bool:
        """Begin a case, from the source network if the policy asks for it.

        Args:
            site: site of the case; None: unknown.

        Returns:
            Whether the method had learnt something and was reset.
        """
        due = self.policy.due(self.method, site)
        learnt = due and self.method.batches > 0
        if due:
            self.restore()
        self.policy.begin(site)
        return learnt

    def adapt(self, images: torch.Tensor, was_reset: bool = False) -> StepRecord:
        """Adapt the network to one batch, and show it to the policy.

        Args:
            images: ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
            was_reset: what :meth:`begin` returned, for the first batch of a case.
        """
        record = self.method.adapt(images)
        with torch.inference_mode(False):
            self.policy.observe(self.method, images)
        return dataclasses.replace(record, reset=True) if was_reset else record

    def restore(self) -> None:
        """Restore the source network exactly, and let the policy forget what it saw."""
        self.method.restore()
        self.policy.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process continues bit for bit: the method's and the policy's."""
        state: dict[str, Any] = {}
        for key, value in self.method.state_dict().items():
            state[key] = value
            # the order is that of files on disk, whose digests depend on it
            if key == "settings":
                state["reset"] = {"policy": repr(self.policy), "state": self.policy.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; one that a method alone has written holds no policy, which then starts anew.

        Raises:
            GrataError: the state belongs to another policy, method or network, or to other settings; nothing is changed
                then.
        """
        reset = state.get("reset") if isinstance(state, Mapping) else None
        if reset is not None and reset["policy"] != repr(self.policy):
            raise GrataError(
                f"This state was written with another reset policy ({reset['policy']}, here {self.policy!r}): "
                "give the same one, or start anew."
            )
        self.method.load_state_dict(dict(state))
        self.policy.forget()
        if reset is not None:
            self.policy.load_state_dict(reset["state"])

    def snapshot(self) -> dict[str, Any] | None:
        """Return what :meth:`go_back` needs; None: the source network, of which no copy is needed."""
        return self.state_dict() if self.method.active or self.method.batches else None

    def go_back(self, snapshot: Mapping[str, Any] | None) -> None:
        """Put method and policy back to a snapshot."""
        if snapshot is None:
            self.restore()
        else:
            self.load_state_dict(snapshot)
