"""The inference smoke: a few chats with the prepared server, each a test with its transcript and
its numbers.
"""
