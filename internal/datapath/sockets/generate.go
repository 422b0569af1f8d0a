package sockets

//go:generate go tool bpf2go -go-package sockets -cc clang-19 -target bpfel -type sock_row -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../../bpf/include" list ../../../bpf/sock_list.c
