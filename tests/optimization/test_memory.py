"""The memory finds the nearest of its last pairs by the cosine between their keys."""

import pytest
import torch

from grata.optimization import MemoryBank


def filled(size, count):
    generator = torch.Generator().manual_seed(1)
    memory = MemoryBank(size)
    pairs = [(torch.randn(2, 3, generator=generator), torch.tensor(float(n))) for n in range(count)]
    for key, value in pairs:
        memory.add(key, value)
    return memory, pairs


@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_nearest_by_cosine_come_first(count):
    memory, pairs = filled(5, 9)
    key = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    cosine = [float((k * key).sum() / (k.norm() * key.norm())) for k, _ in pairs[-5:]]
    order = sorted(range(5), key=lambda n: -cosine[n])[:count]
    found, values = memory.nearest(key, count)
    assert found.tolist() == pytest.approx([cosine[n] for n in order], abs=1e-6)
    assert [value.item() for value in values] == [pairs[-5:][n][1].item() for n in order] and len(memory) == 5


def test_of_two_as_near_the_older_comes_first_and_length_does_not_matter():
    memory = MemoryBank(4)
    for number, key in enumerate(([0.0, 1.0], [1.0, 0.0], [5.0, 0.0])):
        memory.add(torch.tensor(key), torch.tensor(number))
    assert [int(value) for value in memory.nearest(torch.tensor([2.0, 0.0]), 3)[1]] == [1, 2, 0]


def test_an_empty_memory_has_nothing_near():
    cosines, values = MemoryBank(3).nearest(torch.ones(4), 2)
    assert cosines.shape == (0,) and values == []


def test_pairs_are_copies():
    memory, key, value = MemoryBank(1), torch.ones(2), torch.ones(1)
    memory.add(key, value)
    key.zero_()
    value.zero_()
    cosines, values = memory.nearest(torch.ones(2), 1)
    assert cosines.item() == pytest.approx(1) and values[0].item() == 1


def test_another_memory_continues_and_a_smaller_one_keeps_the_last():
    memory, pairs = filled(5, 7)
    key = pairs[4][0]
    for size, count in ((5, 5), (2, 2)):
        other = MemoryBank(size)
        other.load_state_dict(memory.state_dict())
        assert len(other) == count and {v.item() for v in other.nearest(key, 9)[1]} == set(range(7 - count, 7))
    memory.forget()
    assert len(memory) == 0 and len(other) == 2
