"""Patterns for names of modules: those of this package pass, those that may take forever are refused."""

import pytest

from mmtrackers import AMGLoraConfig, ProgressiveConfig, SDMoEConfig, TMoEConfig
from mmtrackers.hub.patterns import check_pattern, check_patterns
from mmtrackers.tuners.lora import lora_config


@pytest.mark.parametrize(
    "config",
    [
        lora_config(),
        AMGLoraConfig(),
        AMGLoraConfig(adapter_layers=[*range(40)]),
        ProgressiveConfig(),
        SDMoEConfig(),
        TMoEConfig(),
    ],
    ids=lambda config: config.peft_type,
)
def test_own_patterns_pass(config) -> None:
    check_patterns(config.to_dict(), "adapter_config.json")


@pytest.mark.parametrize("pattern", ["q_proj", r".*decoder.*(q|v)$", r"(?:a|b)?\.c{2,3}", r"[(a+)*]+x", r"\(a+\)*"])
def test_harmless_patterns_pass(pattern: str) -> None:
    check_pattern("target_modules", pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+b", "repeats a group"),
        ("((ab)*c)*d", "repeats a group"),
        ("(a|a)*b", "repeats a group"),
        ("(x(a|b){2,}y){3,}", "repeats a group"),
        (".*.*.*.*.*x", "has 5 repeats"),
        ("(a", "is no regular expression"),
        ("a{99999999999}", "is no regular expression"),
    ],
)
def test_patterns_that_may_take_forever_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"target_modules .* {message}"):
        check_pattern("target_modules", pattern)
