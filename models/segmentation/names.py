"""Name tables of whole segmentation networks: those of the parts, placed where a framework has
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx

from lambdanet.interop.names import Rule, prefixed

Table = tuple[Rule, ...]


@dataclass(frozen=True)
class Framework:
    r"""Where a framework's checkpoints have the parts.

    Args:
        backbone: pattern that the backbone's keys begin with.
        head: likewise for the head.
        auxiliary: likewise for the auxiliary head.
        grammars: grammars of the backbone in such files, the first that it has is taken.
        neck: whether keys of the head that begin with `neck.` stand beside it, not in it.
    """

    backbone: str
    head: str
    auxiliary: str
    grammars: tuple[str, ...]
    neck: bool = False


FRAMEWORKS = {
    "mmsegmentation": Framework(
        r"backbone\.",
        r"decode_head\.",
        r"auxiliary_head\.",
        ("mmseg", "torchvision", "official"),
        neck=True,
    ),
    "transformers": Framework(
        r"backbone\.", r"decode_head\.", r"auxiliary_head\.", ("transformers",)
    ),
    "torchvision": Framework(r"backbone\.", r"classifier\.", r"aux_classifier\.", ("torchvision",)),
    "ccnet": Framework("", r"head\.", r"dsn\.", ("official",)),
    "ocnet": Framework("", "", r"dsn\.", ("official",)),
    "danet": Framework(r"pretrained\.", r"head\.", r"auxlayer\.", ("timm", "torchvision")),
}
"""mmsegmentation, transformers, torchvision, and the code of CCNet, OCNet and DANet."""


def tables(
    backbone: nnx.Module, head: nnx.Module, auxiliary: nnx.Module | None
) -> dict[str, Table]:
    """Returns framework -> table of a segmenter, of every framework that has its parts.

    Args:
        backbone: the backbone.
        head: the head.
        auxiliary: the auxiliary head, or None.

    Raises:
        ValueError: there is none.
    """
    own, heads = backbone.torch_names, head.torch_names
    extra = {} if auxiliary is None else auxiliary.torch_names
    found = {}
    for name, place in FRAMEWORKS.items():
        grammar = next((grammar for grammar in place.grammars if grammar in own), None)
        if grammar is None or name not in heads or (auxiliary is not None and name not in extra):
            continue
        beside = tuple(rule for rule in heads[name] if place.neck and _is_neck(rule))
        inside = tuple(rule for rule in heads[name] if rule not in beside)
        found[name] = (
            *prefixed(own[grammar], place.backbone, "backbone"),
            *prefixed(inside, place.head, "head"),
            *prefixed(beside, "", "head"),
            *prefixed(extra.get(name, ()), place.auxiliary, "auxiliary"),
        )
    if not found:
        parts = ", ".join(
            f"{what} {type(part).__name__} has {', '.join(part.torch_names) or 'none'}"
            for what, part in (("head", head), ("auxiliary", auxiliary))
            if part is not None
        )
        raise ValueError(
            f"no PyTorch name table for this segmenter: the backbone's are for {', '.join(own)}; "
            f"{parts}; a framework of {', '.join(FRAMEWORKS)} must have all parts"
        )
    return found


def _is_neck(rule: Rule) -> bool:
    return rule.pattern.startswith(r"neck\.")
