"""A teacher is a second set of weights for one network."""

import pytest
import torch
from torch import nn

from grata.optimization import Teacher


@pytest.fixture
def student():
    return {"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.tensor(3.0))}


def add(parameters, amount):
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(amount)


def values(weights):
    return torch.cat([value.detach().flatten() for value in weights.values()]).tolist()


def test_until_it_differs_the_teacher_is_the_student(student):
    teacher = Teacher(student)
    add(student, 1)
    assert values(teacher.weights) == [2, 3, 4] and teacher.state_dict() == {}
    with teacher.in_place():
        assert values(student) == [2, 3, 4]


def test_an_exponential_moving_average_of_the_student(student):
    teacher = Teacher(student)
    teacher.begin()
    add(student, 1)
    teacher.follow(0.75)
    assert values(teacher.weights) == [1.25, 2.25, 3.25] and values(student) == [2, 3, 4]


def test_its_weights_are_in_place_for_a_block_and_then_the_students_exactly(student):
    teacher = Teacher(student)
    teacher.begin()
    add(student, 1 / 3)
    before = values(student)
    with pytest.raises(ValueError), teacher.in_place():
        assert values(student) == [1, 2, 3]
        raise ValueError
    assert values(student) == before


@pytest.mark.parametrize("learns", [False, True])
def test_it_keeps_what_a_block_makes_of_its_weights_only_where_it_learns(student, learns):
    teacher = Teacher(student)
    teacher.begin()
    with teacher.in_place(learns):
        add(student, 5)
    assert values(student) == [1, 2, 3] and values(teacher.weights) == ([6, 7, 8] if learns else [1, 2, 3])


def test_what_a_failed_block_made_is_not_kept(student):
    teacher = Teacher(student)
    with pytest.raises(ValueError), teacher.in_place(learns=True):
        add(student, 5)
        raise ValueError
    assert values(student) == values(teacher.weights) == [1, 2, 3]


def test_another_teacher_continues_and_shares_nothing(student):
    teacher = Teacher(student)
    teacher.begin()
    add(student, 1)
    state = teacher.state_dict()
    other = Teacher(student)
    other.load_state_dict(state)
    other.follow(0.5)
    assert values(other.weights) == [1.5, 2.5, 3.5] and values(state) == values(teacher.weights) == [1, 2, 3]
    other.load_state_dict({})
    assert values(other.weights) == values(student)
    teacher.forget()
    assert values(teacher.weights) == [2, 3, 4]
