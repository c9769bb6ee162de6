"""What a cluster must survive: scenarios of failure on real servers, under a load that checks itself afterwards."""
