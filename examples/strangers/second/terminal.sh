printf 'host: kestrel\n$ df -h\nFilesystem  Size Used Free\n/dev/sda1    80G  31G  49G\n/dev/sdb1   200G 152G  48G\n$ uptime\n14:07 up 23 days, 2 users\n'
