"""Errors that name the nearest right thing."""

from spaces.errors import by_nearness, unknown_name


def test_the_nearest_name_comes_first():
    assert by_nearness("rotat", ["solarize", "rotate", "shear_x"])[0] == "rotate"
    error = unknown_name("operation", "rotat", ["solarize", "rotate"], where="policy.json")
    assert str(error) == (
        "unknown operation 'rotat' in policy.json: did you mean 'rotate'? (also known: solarize)"
    )
