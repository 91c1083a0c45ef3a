"""Learners made from other people's libraries; each is imported only where it is used."""
