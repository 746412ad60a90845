import pytest
import torch
from golden.loader import load

from operators.sam_audio.config import SolverConfig
from operators.sam_audio.flow import SolverError, evaluations, noise, solve


@pytest.mark.parametrize("channels", [1, 12, 256])
def test_noise_of_a_stretch_equals_the_whole(channels: int) -> None:
    whole = noise("item", 500, channels)
    for start, frames in [(0, 500), (1, 1), (37, 200), (499, 1)]:
        assert torch.equal(noise("item", frames, channels, start=start), whole[start : start + frames])


def test_noise_is_standard_normal() -> None:
    draw = noise("item", 4000, 256).double()
    assert abs(float(draw.mean())) < 0.005
    assert abs(float(draw.std()) - 1) < 0.005
    assert abs(float((draw**4).mean()) - 3) < 0.05
    assert abs(float((draw[1:] * draw[:-1]).mean())) < 0.005
    assert abs(float((draw[:, 1:] * draw[:, :-1]).mean())) < 0.005


def test_noise_of_other_items_differs() -> None:
    correlation = (noise("a", 1000, 256) * noise("b", 1000, 256)).mean()
    assert abs(float(correlation)) < 0.01


def test_noise_stays_what_it_is() -> None:
    # Stored stems depend on these numbers: a change here needs a new config hash.
    expected = torch.tensor([[[1.6181241, 0.3951387, 1.0641582, -0.6158981]]][0])
    torch.testing.assert_close(noise("item", 1, 4, start=1_000_000), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "step", "key"),
    [
        ("midpoint", 1 / 16, "midpoint16_times"),
        ("euler", 0.3, "euler_0.3_times"),
        ("midpoint", 0.3, "midpoint_0.3_times"),
    ],
)
def test_solver_evaluates_at_the_times_of_the_reference(method: str, step: float, key: str) -> None:
    times: list[float] = []

    def velocity(time: float, z: torch.Tensor) -> torch.Tensor:
        times.append(time)
        return torch.zeros_like(z)

    solver = SolverConfig(method, step)
    solve(velocity, torch.zeros(1), solver)
    assert times == pytest.approx(load("separate_text").values[key], abs=1e-7)
    assert len(times) == evaluations(solver)


def test_midpoint_is_second_order_and_euler_first() -> None:
    def error(method: str, steps: int) -> float:
        z = solve(lambda t, z: z, torch.ones(1, dtype=torch.float64), SolverConfig(method, 1 / steps))
        return abs(float(z) - torch.e)

    assert error("euler", 16) / error("euler", 32) == pytest.approx(2, rel=0.1)
    assert error("midpoint", 16) / error("midpoint", 32) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("solver", [SolverConfig("rk4", 0.1), SolverConfig("euler", 0), SolverConfig("euler", 1.5)])
def test_unusable_solver_is_refused(solver: SolverConfig) -> None:
    with pytest.raises(SolverError):
        solve(lambda t, z: z, torch.ones(1), solver)
