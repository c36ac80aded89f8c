"""One call runs the whole contract on a tiny Llama."""

from uqharness_sgld_noise import SGLDNoise

from uqharness.testing import check_method


def test_contract() -> None:
    posterior = check_method(SGLDNoise, snapshots=3)
    assert posterior.finite == 3


def test_the_last_step_is_kept_and_none_before_the_burn_in() -> None:
    assert SGLDNoise(snapshots=5).kept_steps(100)[-1] == 99
    assert min(SGLDNoise(snapshots=5).kept_steps(100)) >= 50
