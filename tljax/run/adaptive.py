"""Training that freezes what has settled, from the bottom up, and keeps the activations below it."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tljax import mesh
from tljax.run import activations
from tljax.run.training import Go, Prepared, Training
from tljax.train import loop
from tljax.train.state import TrainState
from tljax.transfer import adaptive, phases


class AdaptiveTraining(Training):
    """`Training` whose phases are found on the way: each begins where a look finds that more stages have settled."""

    def fit(self, now: TrainState, done: loop.Progress) -> tuple[TrainState, loop.Progress]:
        """As `Training.fit`; says what was saved."""
        now, done = super().fit(now, done)
        if done.moves:
            train = self.kept.examples["train"]
            tokens = 1 if train.lengths is None else round(float(train.lengths.mean()))
            seen = [self.feed.seen(step) for step in (0, *(move[0] for move in done.moves), int(now.step))]
            taken = [end - begin for begin, end in itertools.pairwise(seen)]
            told = zip(self.kept.plans, self.kept.starts, taken, strict=True)
            share = adaptive.left_out(self.model.backbone, tokens, len(train), list(told))
            self.say(f"adaptive freezing: {100 * share:.0f} % of the products of training everything were left out")
        return now, done

    def _driven(
        self, go: Go, ready: Prepared, now: TrainState, done: loop.Progress
    ) -> tuple[TrainState, loop.Progress]:
        every = max(self.feed.steps_per_epoch // self.config.transfer.looks, 1)
        while not loop.finished(int(now.step), ready.until, done, self.config.train):
            step = int(now.step)
            if step and step % every == 0 and done.looked != step:  # a resumed run may stand here before its look
                done.looked = step
                if self._settled(ready, now, done, every):
                    break
            now, done = go(now, done, min((step // every + 1) * every, ready.until))
        return now, done

    def _settled(self, ready: Prepared, now: TrainState, done: loop.Progress, every: int) -> bool:
        """Whether the next phase begins here; then it is planned."""
        network, lowest = self.model.backbone, ready.phase.plan.lowest
        before, step = done.distances, int(now.step)
        done.distances = adaptive.distances(mesh.fetch(now.trainable), self.given, network.stage_of)
        if not before:
            return False
        grew = adaptive.growth(before, done.distances, step / (step - every))
        raised = adaptive.lowest(network.stage_names, grew, lowest, self.config.transfer.settled)
        if raised == lowest:
            return False
        left = -(-(self.steps - step) // self.feed.steps_per_epoch)
        self.kept, start, why = activations.raised(self.kept, raised, left)
        done.moves.append([step, raised, start])
        self.say(f"step {step}: what is below {network.stage_names[raised]} has settled and is frozen; {why}")
        self._replan(done.moves)
        return True

    def _phase_of(self, said: Mapping[str, Any]) -> int:
        self._replan(said.get("moves", []))
        return super()._phase_of(said)

    def _replan(self, moves: Sequence[Sequence[int]]) -> None:
        """The phases, from the steps at which they began, their lowest stages and where their batches enter."""
        network, transfer = self.model.backbone, self.config.transfer
        ends = [*(step for step, _, _ in moves), self.steps]
        plans = [self.planned[0].plan, *(phases.above(network, transfer, lowest) for _, lowest, _ in moves)]
        lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        self.planned = [phases.Phase(plan, 0, steps=steps) for plan, steps in zip(plans, lengths, strict=True)]
        starts = (self.kept.starts[0], *(start for _, _, start in moves))
        self.kept = dataclasses.replace(self.kept, plans=plans, starts=starts)
