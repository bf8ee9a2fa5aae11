"""One prompt through one method, looked at: `inputs` reads what to look at, `examine` looks."""
