"""What an operator needs to find out why: the watchdog, profiles, heap, stacks, the way runs spent their time."""
