"""Name tables: transforms, prefixes, and the strictness of the conversion."""

import logging

import numpy as np
import pytest

from lambdanet.interop.names import (
    BATCH_NORM,
    CONV,
    LINEAR,
    POINTWISE,
    NameMappingError,
    Rule,
    choose_table,
    convert,
    prefixed,
)


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("window", [(3,), (3, 5), (2, 3, 5)])
def test_conv_moves_every_number_to_its_place(window):
    array = numbered(7, 4, *window)
    shape = (*window, 4, 7)
    out = convert({"weight": array}, CONV, {"kernel": shape, "bias": ()}, require_all=False)[
        "kernel"
    ]
    assert out.shape == shape
    for index in np.ndindex(*array.shape):
        o, i, *tap = index
        assert out[(*tap, i, o)] == array[index]


def test_linear_and_pointwise_give_input_by_output():
    array = numbered(5, 3)
    (linear,) = convert({"weight": array}, LINEAR, {"kernel": (3, 5)}, require_all=False).values()
    (pointwise,) = convert(
        {"weight": array[:, :, None, None]}, POINTWISE, {"kernel": (3, 5)}, require_all=False
    ).values()
    np.testing.assert_array_equal(linear, array.T)
    np.testing.assert_array_equal(pointwise, array.T)


def test_fused_projection_is_cut_along_the_output_channels():
    rules = (
        Rule(r"qkv\.weight", ("query/kernel", "key/kernel", "value/kernel"), "pointwise"),
        Rule(r"qkv\.bias", ("query/bias", "key/bias", "value/bias")),
    )
    shapes = {"query/kernel": (3, 4), "key/kernel": (3, 1), "value/kernel": (3, 2)}
    shapes |= {"query/bias": (4,), "key/bias": (1,), "value/bias": (2,)}
    weight, bias = numbered(7, 3, 1, 1), numbered(7)
    out = convert({"qkv.weight": weight, "qkv.bias": bias}, rules, shapes)
    np.testing.assert_array_equal(out["query/kernel"], weight[:4, :, 0, 0].T)
    np.testing.assert_array_equal(out["key/kernel"], weight[4:5, :, 0, 0].T)
    np.testing.assert_array_equal(out["value/kernel"], weight[5:, :, 0, 0].T)
    np.testing.assert_array_equal(out["value/bias"], bias[5:])
    with pytest.raises(
        NameMappingError,
        match=r"qkv\.bias .*last axis of \(8,\) cannot be cut into pieces of \[4, 1, 2\]",
    ):
        convert({"qkv.weight": weight, "qkv.bias": numbered(8)}, rules, shapes)


def test_separate_projections_are_joined_along_the_output_channels():
    rules = [
        Rule(rf"{name}\.weight", "qkv/kernel", "linear", piece=(index, 3))
        for index, name in enumerate("qkv")
    ]
    arrays = {f"{name}.weight": numbered(2, 4) + 10 * index for index, name in enumerate("vqk")}
    out = convert(arrays, rules, {"qkv/kernel": (4, 6)})
    joint = np.concatenate([arrays[f"{name}.weight"].T for name in "qkv"], axis=1)
    np.testing.assert_array_equal(out["qkv/kernel"], joint)
    del arrays["k.weight"]
    with pytest.raises(NameMappingError, match=r"missing.*\n +qkv/kernel \[2/3\] \(4, 2\)"):
        convert(arrays, rules, {"qkv/kernel": (4, 6)})
    with pytest.raises(ValueError, match="fills a piece of None; allowed: of one path"):
        Rule("q", None, piece=(0, 3))


def test_prefixes_nest_and_keep_the_groups_of_the_part():
    part = (
        Rule(r"branch(\d)\.w", r"branches/\1/kernel", "linear"),
        Rule(r"a\.w|b\.w", "other/kernel"),
    )
    block = prefixed(part, r"blocks\.(\d+)\.", r"blocks/\1")
    rules = prefixed(block, r"stages\.(\d+)\.", r"stages/\1")
    state = {"stages.2.blocks.10.branch3.w": numbered(2, 4), "stages.2.blocks.10.b.w": numbered(3)}
    shapes = {
        "stages/2/blocks/10/branches/3/kernel": (4, 2),
        "stages/2/blocks/10/other/kernel": (3,),
    }
    assert set(convert(state, rules, shapes)) == set(shapes)
    with pytest.raises(
        NameMappingError, match="no rule knows it"
    ):  # the alternative must not escape its prefix
        convert({**state, "b.w": numbered(3)}, rules, shapes)


def test_batch_norm_maps_statistics_and_drops_the_counter():
    state = {name: numbered(3) for name in ("weight", "bias", "running_mean", "running_var")}
    out = convert(
        {**state, "num_batches_tracked": np.int64(7)},
        BATCH_NORM,
        dict.fromkeys(("scale", "bias", "mean", "var"), (3,)),
    )
    assert set(out) == {"scale", "bias", "mean", "var"}


def test_own_transform_function():
    rule = Rule(r"table", "embedding", lambda array: array[:, 0].transpose(1, 2, 0))
    out = convert({"table": numbered(2, 1, 3, 4)}, (rule,), {"embedding": (3, 4, 2)})
    np.testing.assert_array_equal(out["embedding"], numbered(2, 1, 3, 4)[:, 0].transpose(1, 2, 0))


def test_of_several_rules_the_one_that_the_model_has_targets_for_is_taken():
    rules = (
        Rule(r"table", "window_bias"),
        Rule(r"table", "slot_bias", "vector"),
        Rule(r"positions", "grid"),
        Rule(r"positions", ("token", "grid"), lambda array: (array[:1], array[1:])),
    )
    state = {"table": numbered(1, 4, 1), "positions": numbered(5, 2)}
    out = convert(state, rules, {"slot_bias": (4,), "token": (1, 2), "grid": (4, 2)})
    np.testing.assert_array_equal(out["slot_bias"], numbered(4))
    np.testing.assert_array_equal(out["token"], numbered(5, 2)[:1])  # the rule that fills more
    np.testing.assert_array_equal(out["grid"], numbered(5, 2)[1:])
    out = convert(state, rules, {"window_bias": (1, 4, 1), "grid": (5, 2)})
    assert set(out) == {"window_bias", "grid"}
    with pytest.raises(NameMappingError, match=r"table \(1, 4, 1\): the model has no window_bias"):
        convert(state, rules, {"grid": (5, 2)})
    with pytest.raises(NameMappingError, match="table: matched by several rules"):
        convert(state, rules, {"window_bias": (1, 4, 1), "slot_bias": (4,), "grid": (5, 2)})


def test_what_is_dropped_may_be_looked_at():
    def only_ones(array):
        if not np.all(array == 1):
            raise ValueError("not ones")

    rules = (Rule(r"ones", None, only_ones),)
    assert convert({"ones": np.ones(3)}, rules, {}) == {}
    with pytest.raises(NameMappingError, match="ones -> dropped: not ones"):
        convert({"ones": numbered(3)}, rules, {}, allow_head_mismatch=("head",))


def test_arrays_of_another_shape_may_be_reshaped():
    seen = []

    def reshape(path, array, shape):
        seen.append((path, array.shape, shape))
        return array.reshape(shape) if path == "a" else array

    rules = (Rule(r"(\w)", r"\1"),)
    out = convert(
        {"a": numbered(4), "b": numbered(2)}, rules, {"a": (2, 2), "b": (2,)}, reshape=reshape
    )
    np.testing.assert_array_equal(out["a"], numbered(2, 2))
    assert seen == [("a", (4,), (2, 2)), ("b", (2,), (2,))]
    with pytest.raises(
        NameMappingError, match=r"b \(2,\) -> b: gives \(2,\), the model has \(3,\)"
    ):
        convert(
            {"a": numbered(4), "b": numbered(2)}, rules, {"a": (2, 2), "b": (3,)}, reshape=reshape
        )


def test_the_table_that_places_the_most_keys_is_chosen():
    tables = {
        "end": (Rule(r"l(\d)\.down", r"\1/embed"), Rule(r"l(\d)\.w", r"\1/w")),
        "start": (Rule(r"l([1-9])\.down", r"\1/next"), Rule(r"l(\d)\.w", r"\1/w")),
    }
    paths = {"0/w", "1/w", "0/embed", "1/next"}
    assert (
        choose_table(tables, ["l0.w", "l0.down"], paths) == "end"
    )  # the other table does not know the key
    assert (
        choose_table(tables, ["l0.w", "l1.down"], paths) == "start"
    )  # the model does not have the other table's target
    assert choose_table(tables, ["l0.w", "l1.w"], paths) == "end"  # no difference: the first


def test_every_problem_is_reported_at_once_with_the_nearest_names():
    rules = (
        *prefixed(CONV, r"stem\.", "stem"),
        *prefixed(CONV, r"extra\.", "extras"),
        *prefixed(LINEAR, r"fc\.", "head/fc"),
        Rule(r"twice\.weight", "twice"),
        Rule(r"twice\.w.*", "twice"),
        Rule(r"one|two", "same"),
    )
    shapes = {
        "stem/kernel": (3, 3, 2, 4),
        "extra/kernel": (1, 1, 2, 2),
        "head/fc/kernel": (4, 10),
        "lonely/scale": (4,),
    }
    shapes |= {"twice": (2,), "same": (2,)}
    state = {
        "stem.weight": numbered(4, 2, 5, 5),  # wrong window
        "extra.weight": numbered(2, 2, 1, 1),  # the table's target does not exist
        "fc.weight": numbered(10, 4, 1),  # not linear
        "lonely.scales": numbered(4),  # no rule
        "twice.weight": numbered(2),
        "one": numbered(2),
        "two": numbered(2),
    }
    with pytest.raises(NameMappingError) as caught:
        convert(state, rules, shapes)
    message = str(caught.value)
    for text in (
        "2 missing",
        "lonely/scale (4,) (unused in the file: lonely.scales)",
        "extra/kernel (1, 1, 2, 2) (unused in the file: extra.weight)",
        "2 unused",
        "lonely.scales (4,): no rule knows it",
        "extra.weight (2, 2, 1, 1): the model has no extras/kernel (nearest: extra/kernel",
        "2 mis-shaped",
        "stem.weight (4, 2, 5, 5) -> stem/kernel: gives (5, 5, 2, 4), the model has (3, 3, 2, 4)",
        "fc.weight -> head/fc/kernel: a linear weight has 2 axes (out, in), this has shape (10, 4, "
        "1)",
        "2 claimed twice",
        r"twice.weight: matched by several rules: twice\.weight, twice\.w.*",
        "same: filled by both one and two",
    ):
        assert text in message, f"{text!r} not in\n{message}"


HEAD = (*prefixed(LINEAR, r"body\.", "body"), *prefixed(LINEAR, r"fc\.", "head/fc"))
HEAD_SHAPES = {"body/kernel": (3, 3), "head/fc/kernel": (3, 10), "head/fc/bias": (10,)}


@pytest.mark.parametrize(
    "head",
    [{"fc.weight": numbered(7, 3), "fc.bias": numbered(7)}, {}],
    ids=["other classes", "no head"],
)
def test_head_may_differ_only_where_allowed(head, caplog):
    state = {"body.weight": numbered(3, 3), **head}
    with pytest.raises(NameMappingError, match="head/fc/bias"):
        convert(state, HEAD, HEAD_SHAPES)
    with caplog.at_level(logging.WARNING):
        out = convert(state, HEAD, HEAD_SHAPES, allow_head_mismatch=("head/fc",))
    assert set(out) == {"body/kernel"}
    said = "2 arrays are not taken from the weights, the model keeps its own: head/fc/bias, head/fc"
    assert said in caplog.text
    shapes = {**HEAD_SHAPES, **{f"head/fc/{i}/kernel": (2, 2) for i in range(30)}}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        convert(state, HEAD, shapes, allow_head_mismatch=("head/fc",))
    (line,) = caplog.messages  # a long list is counted
    assert line.startswith("32 arrays are not taken") and line.endswith(" and 28 more")
    assert len(line) < 200
    with pytest.raises(NameMappingError, match="body/kernel"):  # the rest stays strict
        convert(
            {**head, "body.weight": numbered(3, 4)},
            HEAD,
            HEAD_SHAPES,
            allow_head_mismatch=("head/fc",),
        )


def test_allowed_head_is_taken_when_it_fits_and_dropped_when_the_model_has_none():
    state = {"body.weight": numbered(3, 3), "fc.weight": numbered(10, 3), "fc.bias": numbered(10)}
    assert set(convert(state, HEAD, HEAD_SHAPES, allow_head_mismatch=("head/fc",))) == set(
        HEAD_SHAPES
    )
    assert set(convert(state, HEAD, {"body/kernel": (3, 3)}, allow_head_mismatch=("head/fc",))) == {
        "body/kernel"
    }
    with pytest.raises(NameMappingError, match="2 unused"):
        convert(state, HEAD, {"body/kernel": (3, 3)})
    # A prefix ends at a slash: "head/f" does not excuse "head/fc".
    with pytest.raises(NameMappingError, match="2 unused"):
        convert(state, HEAD, {"body/kernel": (3, 3)}, allow_head_mismatch=("head/f",))


def test_unknown_transform_is_refused_where_the_rule_is_written():
    with pytest.raises(ValueError, match="unknown transform 'transpose'.*copy, conv, linear"):
        Rule("w", "kernel", "transpose")
