"""Keys and values of earlier tokens: prompts stored once per group, completions side by side.

`PromptCache` serves one pass over packed prompts. `GroupCache` serves decoding, one token per row
and step. Its rows lie on a common timeline: at column c every row writes its newest token, whatever
its length; what lies before a row's own start is masked. So a write is one slice, and a model's
sliding window is the same columns for all.

The newest columns are in an open block, time first, which is cheap to write. A full block is merged
into the closed columns, row first and without a gap: on a CPU, reading rows with even a few unused
columns between them takes 3 times as long, for the prefetcher stops at each.

Axes: K kv heads, B rows, N = K * B, R query heads per kv head, P prompts, S prompt tokens, C
columns, D head width; a leading 2 is keys, values. K comes before rows, so that rows and grids of
rows flatten to batches of matrices without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.attention import attention
from ..kernels.masks import packed_causal

# Columns of the open block.
_BLOCK = {"cpu": 16}
_BLOCK_DEFAULT = 256
_DENSE = torch.contiguous_format


class PromptCache:
    """Attends within packed prompts and keeps each layer's keys and values."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        window: int | None,
        device: torch.device | str,
        kernels: str = "auto",
    ) -> None:
        self.lengths = list(lengths)
        self.kernels = kernels
        self.mask = packed_causal(self.lengths, window=window).to(device)
        self.layers: list[Tensor] = []  # [2, T, K, D], T the sum of lengths

    def attend(self, layer: int, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor) -> Tensor:
        """Attention of each prompt within itself -> out_1THD; called in the order of layers."""
        assert layer == len(self.layers)
        self.layers.append(torch.cat((k_1TKD, v_1TKD)))
        return attention(q_1THD, k_1TKD, v_1TKD, mask=self.mask, backend=self.kernels)

    def padded(self, width: int) -> list[Tensor]:
        """Each layer's keys and values as [2, K, P, width, D], float32 or wider, zeros behind."""
        total = sum(self.lengths)
        index_PS = torch.full((len(self.lengths), width), total)
        start = 0
        for p, n in enumerate(self.lengths):
            index_PS[p, :n] = torch.arange(start, start + n)
            start += n
        index_PS = index_PS.to(self.mask.device)
        out = []
        for kv_2TKD in self.layers:
            wide = torch.promote_types(kv_2TKD.dtype, torch.float32)
            kv_2TKD = F.pad(kv_2TKD.to(wide), (0, 0, 0, 0, 0, 1))
            out.append(kv_2TKD[:, index_PS].permute(0, 3, 1, 2, 4).contiguous())
        return out


class GroupCache:
    """Keys and values of the live rows and of the prompts they continue.

    One step is `begin_step`, the model's forward (which calls `attend` once per layer with one
    token per row), and `end_step`. Attention runs in float32 (float64 if the keys are).
    """

    def __init__(self, *, window: int | None, device: torch.device | str) -> None:
        self.window = window
        self.device = torch.device(device)
        self.column = 0  # where the rows' next token goes
        self.prompt_lengths: list[int] = []
        self.prompts: list[Tensor] = []  # per layer, [2, K, P, S, D]
        self._closed: list[Tensor] = []  # per layer, [2, K, B, C, D], of columns
        self._first_closed = 0  # from here
        self._first_open = 0  # up to here,
        self._open: list[Tensor] = []  # per layer, [2, block, K, B, D], of those that follow
        self._block = _BLOCK.get(self.device.type, _BLOCK_DEFAULT)
        self._grid: tuple[Tensor, Tensor] | None = None
        self._bias_BX: Tensor | None = None
        self._step_bias_BX: Tensor | None = None
        self._first_seen = 0

    def set_prompts(self, kept: Sequence[int], added: Sequence[PromptCache]) -> None:
        """Keep the prompts with these indices, in this order, then append those of `added`."""
        unchanged = not added and list(kept) == list(range(len(self.prompt_lengths)))
        self.prompt_lengths = [self.prompt_lengths[p] for p in kept]
        self.prompt_lengths += [n for cache in added for n in cache.lengths]
        if unchanged:
            return
        width = max(self.prompt_lengths, default=0)
        parts = [cache.padded(width) for cache in added]
        if kept:
            index = torch.tensor(kept, device=self.device)
            parts.insert(0, [_resize(kv.index_select(2, index), width) for kv in self.prompts])
        self.prompts = [torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True)]

    def set_rows(
        self, kept: Sequence[int], *, starts: Sequence[int], prompts: Sequence[int], shift: int
    ) -> None:
        """Keep the rows with these indices, append new ones, and drop the first `shift` columns.

        `starts` (first column, after the shift) and `prompts` (index of the prompt, ascending)
        describe the kept rows and then the new ones.
        """
        if not self._closed:
            self._closed = [kv[:, :, :0, :0] for kv in self.prompts]
            self._open = [kv.new_empty(2, 0, kv.shape[1], 0, kv.shape[4]) for kv in self.prompts]
        index = torch.tensor(kept, dtype=torch.int64, device=self.device)
        cut = max(0, shift - self._first_closed)
        new = len(starts) - len(kept)
        for layer in range(len(self._closed)):  # one by one: only one layer is held twice
            kv = self._columns(layer)[:, :, :, cut:].index_select(2, index)
            # What lies before a row's start is masked, but read: it must not be NaN.
            self._closed[layer] = F.pad(kv, (0, 0, 0, 0, 0, new))
            _, K, B, _, D = self._closed[layer].shape
            self._open[layer] = kv.new_empty(2, self._block, K, B, D)
        self.column -= shift
        self._first_closed = max(0, self._first_closed - shift)
        self._first_open = self.column
        self._arrange(prompts)
        self._hide(starts, [self.prompt_lengths[p] for p in prompts])

    def _columns(self, layer: int) -> Tensor:
        """Closed and open columns of a layer as one [2, K, B, C, D]."""
        used = self.column - self._first_open
        fresh = self._open[layer][:, :used].permute(0, 2, 3, 1, 4)
        return torch.cat((self._closed[layer], fresh), dim=3)

    def _close_block(self) -> None:
        """Merge the open block into the closed columns, less those no later step sees."""
        seen = 0 if self.window is None else self.column + 1 - self.window
        cut = max(0, seen - self._first_closed)
        for layer in range(len(self._closed)):
            self._closed[layer] = self._columns(layer)[:, :, :, cut:].contiguous()
        self._first_closed += cut
        self._first_open = self.column
        if self._bias_BX is not None:
            self._bias_BX = F.pad(self._bias_BX, (0, self._block))

    def _arrange(self, prompts: Sequence[int]) -> None:
        """Rows as a grid of prompts x the most rows of one; equal counts need no index."""
        counts = [0] * len(self.prompt_lengths)
        places = []
        for p in prompts:
            places.append((p, counts[p]))
            counts[p] += 1
        most = max(counts)
        if min(counts) == most:
            self._grid = None
            return
        cell_of_row = torch.tensor([p * most + r for p, r in places])
        row_of_cell = torch.zeros(len(counts) * most, dtype=torch.int64)
        row_of_cell[cell_of_row] = torch.arange(len(places))
        self._grid = row_of_cell.to(self.device), cell_of_row.to(self.device)

    def _hide(self, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Bias over prompt tokens and columns: -inf on padding and before a row's start."""
        S, C = max(lengths), self.column + self._block
        self._bias_BX = None
        self._longest = max(n - s for n, s in zip(lengths, starts, strict=True))
        if self.window is None and max(starts) == 0 and min(lengths) == S:
            return
        start_B1 = torch.tensor(starts, device=self.device)[:, None]
        length_B1 = torch.tensor(lengths, device=self.device)[:, None]
        self._offset_B1 = length_B1 - start_B1
        self._prompt_S = torch.arange(S, device=self.device)
        hidden_BS = self._prompt_S >= length_B1
        hidden_BC = torch.arange(C, device=self.device) < start_B1
        hidden_BX = torch.cat((hidden_BS, hidden_BC), -1)
        bias_BX = torch.zeros(hidden_BX.shape, dtype=self.prompts[0].dtype, device=self.device)
        self._bias_BX = bias_BX.masked_fill_(hidden_BX, float("-inf"))

    def begin_step(self) -> None:
        """Make room for one more column and find what each row sees in it."""
        c = self.column
        if c == self._first_open + self._block:
            self._close_block()
        self._first_seen = 0 if self.window is None else max(0, c + 1 - self.window)
        self._step_bias_BX = None
        if self._bias_BX is None:
            return
        S = max(self.prompt_lengths)
        prompt_BS, own_BC = self._bias_BX[:, :S], self._bias_BX[:, S + self._first_seen : S + c + 1]
        if self.window is not None and self._longest + c >= self.window:
            passed_BS = self._prompt_S <= self._offset_B1 + (c - self.window)
            prompt_BS = prompt_BS.masked_fill(passed_BS, float("-inf"))
        self._step_bias_BX = torch.cat((prompt_BS, own_BC), -1)

    def end_step(self) -> None:
        """Move on to the next column."""
        self.column += 1

    def attend(self, layer: int, q_B1HD: Tensor, k_B1KD: Tensor, v_B1KD: Tensor) -> Tensor:
        """Store the step's k and v; one softmax over prompt and own tokens -> out_B1HD."""
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):
                return self._attend(layer, q_B1HD, k_B1KD, v_B1KD)
        return self._attend(layer, q_B1HD, k_B1KD, v_B1KD)

    def _attend(self, layer: int, q_B1HD: Tensor, k_B1KD: Tensor, v_B1KD: Tensor) -> Tensor:
        B, _, H, D = q_B1HD.shape
        K = k_B1KD.shape[2]
        own = self._write(layer, k_B1KD, v_B1KD)
        k_KPSD, v_KPSD = self.prompts[layer]
        q_KBRD = q_B1HD.view(B, K, H // K, D).transpose(0, 1).to(k_KPSD.dtype)
        q_NRD = torch.mul(q_KBRD, D**-0.5, out=torch.empty_like(q_KBRD, memory_format=_DENSE))
        q_NRD = q_NRD.view(K * B, H // K, D)
        scores = [self._by_prompt(q_NRD, k_KPSD.mT), *(torch.bmm(q_NRD, k.mT) for k, _ in own)]
        scores_NRX = torch.cat(scores, dim=-1)
        if self._step_bias_BX is not None:
            scores_NRX.view(K, B, H // K, -1).add_(self._step_bias_BX[:, None])
        weights_NRX = scores_NRX.softmax(-1)
        weights = weights_NRX.split([x.shape[-1] for x in scores], dim=-1)
        out_NRD = self._by_prompt(weights[0], v_KPSD)
        for weights_NRC, (_, v_NCD) in zip(weights[1:], own, strict=True):
            out_NRD.baddbmm_(weights_NRC, v_NCD)
        out_B1HD = out_NRD.view(K, B, H // K, D).transpose(0, 1).reshape(B, 1, H, D)
        return out_B1HD.to(q_B1HD.dtype)

    def _write(self, layer: int, k_B1KD: Tensor, v_B1KD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Store the step's k and v; keys and values in view, [N, C, D] each: closed, then open."""
        at = self.column - self._first_open
        k_CKBD, v_CKBD = self._open[layer]
        k_CKBD[at] = k_B1KD[:, 0].transpose(0, 1)
        v_CKBD[at] = v_B1KD[:, 0].transpose(0, 1)
        seen = slice(max(0, self._first_seen - self._first_open), at + 1)
        k_NCD, v_NCD = (x[seen].flatten(1, 2).transpose(0, 1) for x in (k_CKBD, v_CKBD))
        if self._first_open <= max(self._first_closed, self._first_seen):
            return [(k_NCD, v_NCD)]
        k_KBCD, v_KBCD = self._closed[layer]
        seen = slice(max(0, self._first_seen - self._first_closed), None)
        k_old_NCD, v_old_NCD = (x[:, :, seen].flatten(0, 1) for x in (k_KBCD, v_KBCD))
        return [(k_old_NCD, v_old_NCD), (k_NCD, v_NCD)]

    def _by_prompt(self, x_NRX: Tensor, y_KPXY: Tensor) -> Tensor:
        """x @ y of each row's prompt -> [N, R, Y]: one product for all rows of a prompt."""
        K, P, X, Y = y_KPXY.shape
        N, R, _ = x_NRX.shape
        if self._grid is None:
            out = torch.bmm(x_NRX.reshape(K * P, -1, X), y_KPXY.flatten(0, 1))
            return out.view(N, R, Y)
        row_of_cell, cell_of_row = self._grid
        cells = x_NRX.view(K, N // K, R, X).index_select(1, row_of_cell)
        out = torch.bmm(cells.view(K * P, -1, X), y_KPXY.flatten(0, 1))
        return out.view(K, -1, R, Y).index_select(1, cell_of_row).view(N, R, Y)


def _resize(kv: Tensor, width: int) -> Tensor:
    """Tokens or columns (axis 3) cut or zero-padded to `width`."""
    return F.pad(kv, (0, 0, 0, width - kv.shape[3]))
