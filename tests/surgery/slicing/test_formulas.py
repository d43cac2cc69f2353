"""Formulas against truth tables."""

from __future__ import annotations

import itertools

import numpy as np

from chansurg.surgery.slicing.formulas import FALSE, TRUE, Formulas


def test_every_assignment_gives_what_python_gives() -> None:
    formulas = Formulas()
    a, b = formulas.bits("a", 2), formulas.bits("b", 2)
    both, either = formulas.both(a, b), formulas.either(a, b)
    mixed = formulas.either(both, a[::-1].copy())
    deep = formulas.both(mixed, formulas.either(either, b))
    every = formulas.all_of(np.concatenate([a, b]))
    for bits in itertools.product([False, True], repeat=4):
        x, y = np.array(bits[:2]), np.array(bits[2:])
        values = formulas.evaluate({"a": x, "b": y})
        assert np.array_equal(values[both], x & y)
        assert np.array_equal(values[either], x | y)
        assert np.array_equal(values[deep], ((x & y) | x[::-1]) & (x | y))
        assert values[every] == (x.all() and y.all())
    assert not formulas.evaluate({})[both].any()


def test_constants_are_absorbed_and_equal_formulas_are_one() -> None:
    formulas = Formulas()
    a, b = formulas.bits("a", 3), formulas.bits("b", 3)
    never, always = np.full(3, FALSE), np.full(3, TRUE)
    assert np.array_equal(formulas.both(a, never), never)
    assert np.array_equal(formulas.both(a, always), a)
    assert np.array_equal(formulas.either(a, always), always)
    assert np.array_equal(formulas.either(a, never), a)
    assert np.array_equal(formulas.both(a, a), a)
    assert np.array_equal(formulas.both(a, b), formulas.both(b, a))
    assert np.array_equal(formulas.bits("a", 3), a)


def test_why_names_the_gates_that_make_it_true() -> None:
    formulas = Formulas()
    a, b, c = (formulas.bits(name, 1) for name in "abc")
    formula = int(formulas.both(formulas.either(a, b), c)[0])
    values = formulas.evaluate({"b": np.array([True]), "c": np.array([True])})
    assert sorted(formulas.why(formula, values)) == ["b", "c"]
