"""What is told to the user."""


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints its text alone and exits with status 2."""
