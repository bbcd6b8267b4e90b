import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.ranges import Ranges
from clinical_ser.errors import AuditFormatError

numbers = st.sets(st.integers(0, 60))


@given(numbers)
def test_ranges_are_read_back(members):
    ranges = Ranges(members)
    again = Ranges.parse(str(ranges))
    assert [n for n in range(62) if n in again] == sorted(members)
    assert len(again) == len(members)


@given(numbers, numbers)
def test_union_and_what_is_outside_are_those_of_sets(one, other):
    joined = Ranges.joined([Ranges(one), Ranges(other)])
    assert joined.last == max(one | other, default=-1)
    assert str(joined) == str(Ranges(one | other))
    assert Ranges(one).first_outside(Ranges(other)) == min(one - other, default=None)


@given(st.lists(st.integers(0, 60), unique=True).map(sorted))
def test_ranges_grow_by_appending(members):
    ranges = Ranges()
    for number in members:
        ranges.append(number)
    assert str(ranges) == str(Ranges(members))


@pytest.mark.parametrize("text", ["1,", "01", "2-1", "1-1", "3,1", "1,2", "1-3,4", "-1", "1 ,3", "a", "1-2-3", "٣"])
def test_another_spelling_is_refused(text):
    with pytest.raises(AuditFormatError):
        Ranges.parse(text)


def test_nothing_is_spelled_as_nothing():
    assert str(Ranges()) == ""
    assert len(Ranges.parse("")) == 0
