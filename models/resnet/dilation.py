"""Which blocks of a ResNet stride and which dilate instead, for maps finer than the last stage's.

Sources: Yu et al. 2017, "Dilated Residual Networks"; Chen et al. 2017, "Rethinking Atrous
Convolution for Semantic Image Segmentation" (output stride, multi-grid). The first block of a
dilated stage is where the public codes differ: with the dilation of the stage before it in
torchvision (`replace_stride_with_dilation`), mmsegmentation (`contract_dilation`) and
PyTorch-Encoding (DANet), with that of its own stage in the code of CCNet and OCNet.
"""

from __future__ import annotations

FIRST_DILATIONS = ("previous", "own")
"""Dilation of the first block of a dilated stage."""

Step = tuple[int, tuple[int, int]]
"""Stride of a block, and the dilations of its first and of its second 3x3 convolution."""


def block_steps(
    blocks: tuple[int, ...],
    *,
    stem: int,
    output_stride: int | None,
    multi_grid: tuple[int, ...],
    first_dilation: str,
) -> list[list[Step]]:
    """Returns the steps of every block, stage by stage.

    Every stage but the first strides by 2 at its first block. Where the total stride would pass
    `output_stride`, the stage does not stride, and its dilation is twice that of the stage before.

    Args:
        blocks: number of blocks per stage.
        stem: total stride of the stem.
        output_stride: the largest total stride; None for no bound.
        multi_grid: factors of the last stage's dilation, which its blocks take in turn. Factors
            other than 1 are for the stage's own dilation, at its first block, too, as in the codes
            that have them.
        first_dilation: one of `FIRST_DILATIONS`.
    """
    total, dilation, steps = stem, 1, []
    for number, count in enumerate(blocks):
        before, stride = dilation, 2 if number else 1
        if output_stride is not None and total * stride > output_stride:
            stride, dilation = 1, 2 * dilation
        total *= stride
        grid = multi_grid if number == len(blocks) - 1 else (1,)
        stage: list[Step] = []
        for index in range(count):
            own = dilation * grid[index % len(grid)]
            contracted = index == 0 and first_dilation == "previous" and set(grid) == {1}
            stage.append((stride if index == 0 else 1, (before if contracted else own, own)))
        steps.append(stage)
    return steps
