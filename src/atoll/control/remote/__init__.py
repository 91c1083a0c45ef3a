"""A federation from elsewhere: the client of its API, runs brought home, the doctor."""
