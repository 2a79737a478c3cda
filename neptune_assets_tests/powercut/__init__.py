"""Power cuts: what storage was told is recorded with strace, and every state that a cut may leave is opened."""
