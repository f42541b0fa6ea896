import itertools
import math

import pytest

from fast_electra.methods.temperature import temperature
from fast_electra.settings.config import SCHEDULES, TemperatureConfig


def test_the_papers_schedule_is_exponential_and_does_not_quite_reach_one():
    config = TemperatureConfig("exponential", initial=2.0, tau=0.1)
    assert temperature(config, 0.0) == 2.0
    assert temperature(config, 0.25) == pytest.approx(1 + math.exp(-2.5))
    assert temperature(config, 1.0) == pytest.approx(1 + math.exp(-10))
    assert temperature(config, 1.0) > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_start_at_the_initial_temperature_and_never_rise(schedule):
    config = TemperatureConfig(schedule, initial=3.0, final=1.0)
    values = [temperature(config, u / 100) for u in range(101)]
    assert values[0] == 3.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine"])
def test_the_other_schedules_end_at_the_final_temperature(schedule):
    assert temperature(TemperatureConfig(schedule, initial=3.0, final=1.5), 1.0) == pytest.approx(1.5)


def test_known_midpoints():
    middle = {s: temperature(TemperatureConfig(s, 3.0, 1.0, power=2.0), 0.5) for s in SCHEDULES}
    assert middle["linear"] == 2.0
    assert middle["polynomial"] == 1.5
    assert middle["cosine"] == pytest.approx(2.0)
    assert middle["constant"] == 3.0


@pytest.mark.parametrize("u", [-0.01, 1.01])
def test_a_fraction_outside_the_run_is_refused(u):
    with pytest.raises(ValueError, match="between 0 and 1"):
        temperature(TemperatureConfig(), u)
