"""Arguments of recipes that are misspelt."""

from pathlib import Path

import pytest

from configs import coco, finetune, own_masks, own_objects
from lambdanet import config as config_lib
from lambdanet import config_flag

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("cifar:lamda", "'lambda'"),
        ("cued_digits:lamda", "'lambda'"),
        ("digit_scenes:segmet", "'segment'"),
        ("digits:slide_swim", "'slide_swin'"),
        ("digits_semi:studnet", "'student'"),
        ("imagenet300:swin_tin", "'swin_tiny'"),
        ("imagenet350:420@32", "'420@320'"),
        ("imagenet90:llll_u", "'llll_u4'"),
        ("moving_digits:clips", "'clip'"),
        ("moving_digits:detect,deep_flow", "'deep_feature_flow'"),
        ("own_videos:copi", "'copy'"),
    ],
)
def test_misspelt_arguments_of_recipes_name_the_nearest(argument, said):
    name, _, rest = argument.partition(":")
    with pytest.raises(config_lib.ConfigError, match=f"Did you mean {said}"):
        config_flag.load_recipe(f"{ROOT / 'configs' / name}.py:{rest}")


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn", "retinanet"])
@pytest.mark.parametrize("more", ["", ",3x", ",smoke"])
def test_a_detector_alone_is_that_on_resnet50_in_the_recipe_of_coco(detector, more):
    alone, whole = (coco.get_config(f"{detector}{b}{more}") for b in ("", ",resnet50"))
    assert config_lib.to_plain(alone) == config_lib.to_plain(whole)
    assert alone.model.name == f"{detector}_resnet50_mmdet"
    assert (alone.optim.name, alone.optim.frozen) == ("sgd", coco.FROZEN)


@pytest.mark.parametrize(
    ("recipe", "name", "said"),
    [
        (own_objects, "video_detector", "configs/moving_digits.py:detect trains"),
        (own_objects, "video_detector,smoke", "configs/moving_digits.py:detect trains"),
        (own_objects, "mask_rcnn", "names no backbone"),
        (finetune, "faster_rcnn,detection", "names no backbone"),
        (own_masks, "video_segmenter", "configs/own_videos.py"),
        (own_masks, "segmenter", "names no backbone"),
    ],
)
def test_networks_of_videos_and_those_without_a_backbone_are_no_presets(recipe, name, said):
    with pytest.raises(ValueError, match=said) as caught:
        recipe.get_config(name)
    allowed = str(caught.value).partition("allowed: ")[2]
    assert "small_" in allowed and "video" not in allowed
