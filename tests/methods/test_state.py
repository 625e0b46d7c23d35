"""What a class declares as remembered is reset, saved and loaded without another line."""

import pytest
import torch

from grata.methods.state import Remembered, Remembers


class Part:
    """A part with one number."""

    def __init__(self):
        self.number = 0

    def forget(self):
        self.number = 0

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


class Base(Remembers):
    count = Remembered(0)
    _average = Remembered[torch.Tensor | None](None)
    _seen = Remembered[list](list())


class Memory(Base):
    _factor = Remembered(1.0)
    _on = Remembered(False)

    def __init__(self):
        self.part = self._keep("part", Part())
        self.open = self._keep(None, Part())


def filled():
    memory = Memory()
    memory.count, memory._factor, memory._on = 3, 0.5, True
    memory._average = torch.arange(3.0, requires_grad=True) * 2
    memory._seen.append("a")
    memory.part.number, memory.open.number = 4, 5
    return memory


def test_a_value_is_a_plain_attribute_that_starts_with_its_initial_value():
    memory = Memory()
    assert (memory.count, memory._average, memory._seen, memory._factor, memory._on) == (0, None, [], 1.0, False)
    assert isinstance(Memory.count, Remembered) and Memory.count.initial == 0


def test_instances_share_nothing():
    first, second = Memory(), Memory()
    first._seen.append("a")
    first.count += 1
    assert second._seen == [] and second.count == 0 and Memory._seen.initial == []


def test_all_values_and_parts_are_forgotten():
    memory = filled()
    memory._forget()
    assert (memory.count, memory._average, memory._seen, memory._factor, memory._on) == (0, None, [], 1.0, False)
    assert memory.part.number == memory.open.number == 0
    memory._seen.append("b")
    memory._forget()
    assert memory._seen == []


def test_a_state_has_a_key_for_each_value_without_underscore_and_for_each_part():
    state = filled()._memory_state()
    assert list(state) == ["part", "number", "count", "average", "seen", "factor", "on"]
    assert state["part"] == {"number": 4} and state["number"] == 5 and state["seen"] == ["a"]


def test_a_saved_state_does_not_change_with_the_object_and_is_in_no_graph():
    memory = filled()
    state = memory._memory_state()
    assert not state["average"].requires_grad
    with torch.no_grad():
        memory._average.add_(1)
    memory._seen.append("b")
    assert torch.equal(state["average"], torch.tensor([0.0, 2.0, 4.0])) and state["seen"] == ["a"]


def test_another_object_continues_from_a_state_and_does_not_share_it():
    state = filled()._memory_state()
    other = Memory()
    other._load_memory(state)
    assert repr(other._memory_state()) == repr(state)
    other._average.add_(1)
    other._seen.append("b")
    assert torch.equal(state["average"], torch.tensor([0.0, 2.0, 4.0])) and state["seen"] == ["a"]


@pytest.mark.parametrize("value", [3, 3.0, torch.tensor(3), torch.tensor(3, dtype=torch.int32)])
def test_a_loaded_number_is_of_the_initial_values_type(value):
    memory = Memory()
    memory._load_memory({**memory._memory_state(), "count": value, "factor": torch.tensor(0.5), "on": 1})
    assert type(memory.count) is int and memory.count == 3
    assert type(memory._factor) is float and memory._factor == 0.5 and memory._on is True


def test_a_state_that_lacks_a_value_is_an_error():
    state = Memory()._memory_state()
    del state["factor"]
    with pytest.raises(KeyError, match="factor"):
        Memory()._load_memory(state)
