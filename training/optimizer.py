"""One optimizer for training from scratch: Muon for the matrices inside layers, AdamW for everything else.

Small transformers learn in far fewer steps with it than with AdamW alone (Jordan et al. 2024, "Muon"; as in
karpathy/nanochat). Both halves are torch's own. Where processes hold equal gradients (DDP), each works out its share of
Muon's updates and hands them to the others, as in Jordan's implementation (docs/LOG.md has what that saves).
"""

import torch
from torch import distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

MUON_RATE = 2.5  # Muon's rate beside AdamW's: its updates are 0.2 of their rate in size, AdamW's nearer to theirs


class SharedMuon(torch.optim.Muon):
    """`torch.optim.Muon` whose matrices are shared out among the processes of the default group, if there are several.

    All must hold equal weights and gradients, as DDP leaves them. Every process keeps the momentum of every matrix, so
    that any of them can save the state, and any number of processes go on from it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        if not (distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().step(closure)
        matrices = [(p, group["momentum"]) for group in self.param_groups for p in group["params"] if p.grad is not None]
        shares = [matrices[rank :: distributed.get_world_size()] for rank in range(distributed.get_world_size())]
        for owner, share in enumerate(shares):
            for p, momentum in share if owner != distributed.get_rank() else ():
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                p.grad = None  # torch passes over these
        loss = super().step(closure)
        for owner, share in enumerate(shares):
            if share:
                weights = [p.data for p, _ in share]
                together = _flatten_dense_tensors(weights)
                distributed.broadcast(together, owner)
                for mine, new in zip(weights, _unflatten_dense_tensors(together, weights), strict=True):
                    mine.copy_(new)
        return loss


class MuonAdamW(torch.optim.Optimizer):
    """Steps `torch.optim.Muon` and `torch.optim.AdamW` together, behind the interface that trainers expect.

    Args:
        rates: (modules' named parameters, learning rate) pairs; parameters without gradient are left out. The rate is
            AdamW's; Muon takes MUON_RATE times it.
        weight_decay: decoupled, for both.
    """

    def __init__(self, rates: list[tuple[list[tuple[str, nn.Parameter]], float]], weight_decay: float):
        muon, adamw = [], []
        for named, rate in rates:
            trained = [(name, p) for name, p in named if p.requires_grad]
            is_matrix = [p.ndim == 2 and "layers." in name for name, p in trained]
            for groups, wanted, lr in ((muon, True, MUON_RATE * rate), (adamw, False, rate)):
                chosen = [p for (_, p), matrix in zip(trained, is_matrix, strict=True) if matrix is wanted]
                if chosen:
                    groups.append({"params": chosen, "lr": lr})
        if not muon + adamw:
            raise ValueError("there is nothing to train: every parameter is frozen")
        self.parts = []
        if muon:
            self.parts.append(SharedMuon(muon, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if adamw:
            self.parts.append(torch.optim.AdamW(adamw, betas=(0.9, 0.98), weight_decay=weight_decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The same dictionaries here and in the parts: a scheduler that sets a rate here sets it there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
