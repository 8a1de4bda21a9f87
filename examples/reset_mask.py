"""Rollouts of reinforcement learning: episodes end inside the batch, and no state may leak into the next one.

python examples/reset_mask.py
"""

import torch

import fastrnn

T, B = 128, 16


def rollout() -> tuple[torch.Tensor, torch.Tensor]:
    """Sixteen balls on a tilted plate; an episode ends when one rolls off. Observations [T, B, 2], done [T, B]."""
    position, speed = torch.zeros(B), torch.zeros(B)
    observations, done = torch.zeros(T, B, 2), torch.zeros(T, B, dtype=torch.bool)
    for t in range(T):
        observations[t] = torch.stack((position, speed), -1)
        speed = speed + 0.05 * position + 0.1 * torch.randn(B)
        position = position + speed
        done[t] = position.abs() > 1
        position, speed = position.where(~done[t], torch.zeros(())), speed.where(~done[t], torch.zeros(()))
    return observations, done


def main() -> None:
    torch.manual_seed(0)
    observations, done = rollout()
    starts = torch.cat(
        (torch.ones(1, B, dtype=torch.bool), done[:-1])
    )  # an episode starts after the step that ended one
    model = fastrnn.nn.GRU(2, 32)
    observations.requires_grad_()
    y, h = model(observations, reset_mask=starts)

    # The same, episode by episode: what the mask replaces.
    difference, episodes = 0.0, 0
    for b in range(B):
        edges = [*starts[:, b].nonzero().flatten().tolist(), T]
        for start, end in zip(edges, edges[1:]):
            alone, _ = model(observations[start:end, b : b + 1])
            difference = max(difference, (alone - y[start:end, b : b + 1]).abs().max().item())
            episodes += 1
    print(f"{episodes} episodes in a batch of {T} steps x {B} rows, one call")
    print(f"largest difference from {episodes} calls, one per episode: {difference:.1e}")

    # Gradients stop at the mask: the last episode of row 0 does not see what came before it.
    last = int(starts[:, 0].nonzero().max())
    (gradient,) = torch.autograd.grad(y[-1, 0].sum(), observations)
    before, within = gradient[:last, 0].abs().max().item(), gradient[last:, 0].abs().max().item()
    print(f"gradient of the last output of row 0: {before:.1e} before step {last}, {within:.1e} from there on")
    assert difference < 1e-5 and before == 0 and within > 0


if __name__ == "__main__":
    main()
