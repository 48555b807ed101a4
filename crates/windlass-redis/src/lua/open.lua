-- Opens the store: writes the version and the epoch of a new one. ARGV[5] is the version that the caller writes, ARGV[6] an epoch.
-- Answers the version and the epoch.

call('HSETNX', KEYS[1], 'version', ARGV[5])
call('HSETNX', KEYS[1], 'epoch', ARGV[6])
return call('HMGET', KEYS[1], 'version', 'epoch')
