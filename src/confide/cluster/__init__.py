"""Servers on one machine or on a Ray cluster: placed, watched, as many as there is work for, and replaced one by one.

Ray starts processes of `confide serve`, which end their own connections, and carries nothing of what users ask.
"""
