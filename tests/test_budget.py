"""The budget of a request is shared by the stores: one of them may not take all of it."""

import pytest
from pydantic import ValidationError

from feature_repo.settings import Settings


@pytest.mark.parametrize(("budget", "read", "sound"), [(250, 100, True), (101, 100, True), (100, 100, False)])
def test_a_budget_that_leaves_the_tables_nothing_is_refused(budget: int, read: int, sound: bool) -> None:
    given = {"TIFFIN_BUDGET_MS": budget, "TIFFIN_READ_TIMEOUT_MS": read}
    if sound:
        assert Settings.model_validate(given).budget_ms == budget
        return
    with pytest.raises(ValidationError, match="TIFFIN_READ_TIMEOUT_MS is 100 and TIFFIN_BUDGET_MS 100"):
        Settings.model_validate(given)
