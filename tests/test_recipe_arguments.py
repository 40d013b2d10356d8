"""Arguments of recipes that are misspelt."""

from pathlib import Path

import pytest

from lambdanet import config as configs
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
    with pytest.raises(configs.ConfigError, match=f"Did you mean {said}"):
        config_flag.load_recipe(f"{ROOT / 'configs' / name}.py:{rest}")
