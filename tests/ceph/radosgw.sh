#!/bin/sh
# Runs a Ceph of one monitor, one OSD in memory and two radosgw, on 127.0.0.1 only, until standard input is closed.
#
#     radosgw.sh FOLDER MON_PORT S3_PORT STS_PORT      FOLDER/ceph.conf is what radosgw-admin needs to know
#
# The second radosgw gives out and takes temporary credentials too. It is another one because with them a radosgw says only
# AccessDenied where it otherwise says which of the two keys is wrong.
#
# Whoever starts it holds the other end of standard input. However that process ends, this one then ends the daemons.
set -eu
folder=$1 mon=$2 s3=$3 sts=$4

clean_up() {
    trap - EXIT
    exec >/dev/null 2>&1
    kill -KILL $daemons
    wait
    rm -rf "$folder"
}
daemons=
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$folder/mon" "$folder/osd" "$folder/run"
cd "$folder"
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)

# cephx is off, and "ms mon client mode" must say so too, or radosgw tries it again and again. One OSD: one replica, few groups.
# The testing backend of SSE-KMS holds one key. Deleted objects give their memory back within seconds.
cat >ceph.conf <<CONF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms bind msgr1 = false
ms mon client mode = crc
ms client mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
run dir = $folder/run
log file = $folder/\$name.log
admin socket = $folder/run/\$name.asok
pid file = $folder/run/\$name.pid
[mon]
mon data = $folder/mon
[osd]
osd data = $folder/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client]
rgw data = $folder/rgw
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = testkey-1=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
[client.s3]
rgw frontends = beast endpoint=127.0.0.1:$s3
[client.sts]
rgw frontends = beast endpoint=127.0.0.1:$sts
rgw s3 auth use sts = true
rgw sts key = 0123456789abcdef
rgw sts min session duration = 1
CONF

monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon]" monmap
ceph-mon -c ceph.conf -i a --mkfs --monmap monmap
ceph-mon -c ceph.conf -i a -f &
daemons="$!"
ceph -c ceph.conf osd new "$osd"
ceph-osd -c ceph.conf -i 0 --mkfs --osd-uuid "$osd"
ceph-osd -c ceph.conf -i 0 -f &
daemons="$daemons $!"
for gateway in s3 sts; do
    radosgw -c ceph.conf -n client.$gateway -f &
    daemons="$daemons $!"
done
read -r _ || true
