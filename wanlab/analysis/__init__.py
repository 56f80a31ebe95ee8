"""Numbers in, results out: from run files to frozen results, reports and figures. No torch, no printing."""
