package netfilter

import "github.com/google/nftables"

// ingress is the hook of devices in tables of family inet (linux/netfilter.h, NF_INET_INGRESS).
const ingress = 5

// Unread names the base chains that Pass does not ask, although they may drop or change packets: those of devices, which see frames before the
// stack does or after it, and those of bridges, where frames pass one.
func (r *Ruleset) Unread(bridged bool) (titles []string) {
	if r == nil {
		return nil
	}
	for _, base := range r.bases {
		if len(base.rules) == 0 && (base.Policy == nil || *base.Policy == nftables.ChainPolicyAccept) {
			continue
		}
		switch family := base.table.Family; {
		case family == nftables.TableFamilyNetdev, family == nftables.TableFamilyINet && *base.Hooknum == ingress, family == nftables.TableFamilyBridge && bridged:
			titles = append(titles, base.title())
		}
	}
	return titles
}
