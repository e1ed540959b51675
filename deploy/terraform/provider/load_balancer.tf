locals {
  own       = var.nlb_arn == null
  listeners = local.own ? var.listeners : {}
  # Where each listener's targets are asked over HTTP; null for those that are connected to.
  checks = { for name, listener in local.listeners : name => listener.server_speaks_first || listener.target_port == 4222 ? null : var.health_check }
  # Each port at which pods are reached, once: two rules for one port are an error of AWS.
  target_ports = local.own ? toset([for port in concat(
    [for listener in var.listeners : listener.target_port],
    [for check in values(local.checks) : check.port if check != null],
  ) : tostring(port)]) : []
  addresses = local.own ? [for key in sort(keys(var.subnets)) : var.subnets[key].address] : [
    # AWS tells only addresses that were chosen when the load balancer was made.
    for mapping in one(data.aws_lb.given[*].subnet_mapping) : mapping.private_ipv4_address if try(mapping.private_ipv4_address, "") != ""
  ]
}

data "aws_lb" "given" {
  count = local.own ? 0 : 1
  arn   = var.nlb_arn

  lifecycle {
    postcondition {
      condition     = self.internal
      error_message = "The load balancer of nlb_arn is reachable from the internet: give an internal one."
    }
  }
}

data "aws_subnet" "each" {
  for_each = var.subnets
  id       = each.value.subnet_id

  lifecycle {
    postcondition {
      condition     = self.vpc_id == var.vpc_id
      error_message = "Subnet ${self.id} is of ${self.vpc_id}, not of vpc_id."
    }

    postcondition {
      condition     = cidrsubnet("${each.value.address}/${split("/", self.cidr_block)[1]}", 0, 0) == self.cidr_block
      error_message = "Address ${each.value.address} is not in subnet ${self.id} (${self.cidr_block})."
    }
  }
}

resource "aws_security_group" "nlb" {
  count       = local.own ? 1 : 0
  name        = "${var.name}-nlb"
  description = "The load balancer in front of relay"
  vpc_id      = var.vpc_id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = { for pair in setproduct(keys(local.listeners), var.client_cidrs) : "${pair[0]} ${pair[1]}" => {
    port  = var.listeners[pair[0]].port
    range = pair[1]
  } }
  security_group_id = aws_security_group.nlb[0].id
  description       = "Clients"
  cidr_ipv4         = each.value.range
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  tags              = var.tags
}

# Health checks are judged by these rules as well.
resource "aws_vpc_security_group_egress_rule" "targets" {
  for_each                     = var.target_security_group_id == null ? [] : local.target_ports
  security_group_id            = aws_security_group.nlb[0].id
  description                  = "Relay"
  referenced_security_group_id = var.target_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = tonumber(each.value)
  to_port                      = tonumber(each.value)
  tags                         = var.tags
}

# From the load balancer's group and nobody else: a peer that reaches the port under one of its addresses can forge a PROXY header.
resource "aws_vpc_security_group_ingress_rule" "targets" {
  for_each                     = var.target_security_group_id == null ? [] : local.target_ports
  security_group_id            = var.target_security_group_id
  description                  = "The load balancer in front of relay"
  referenced_security_group_id = aws_security_group.nlb[0].id
  ip_protocol                  = "tcp"
  from_port                    = tonumber(each.value)
  to_port                      = tonumber(each.value)
  tags                         = var.tags
}

resource "aws_lb" "relay" {
  count              = local.own ? 1 : 0
  name               = var.name
  internal           = true
  load_balancer_type = "network"
  # At creation or never: AWS attaches no group to a load balancer that was made without one.
  security_groups                                              = [aws_security_group.nlb[0].id]
  enforce_security_group_inbound_rules_on_private_link_traffic = var.enforce_rules_on_private_link ? "on" : "off"
  enable_cross_zone_load_balancing                             = var.cross_zone
  enable_deletion_protection                                   = var.deletion_protection
  tags                                                         = var.tags

  dynamic "subnet_mapping" {
    for_each = var.subnets
    content {
      subnet_id            = subnet_mapping.value.subnet_id
      private_ipv4_address = subnet_mapping.value.address
    }
  }

  lifecycle {
    precondition {
      condition     = length(distinct([for subnet in data.aws_subnet.each : subnet.availability_zone_id])) == length(var.subnets)
      error_message = "Two of the subnets are of one zone: a network load balancer takes one subnet of each zone."
    }

    precondition {
      condition     = length(var.supported_regions) == 0 || length(var.subnets) >= 2
      error_message = "An endpoint service for other regions needs two zones at least."
    }
  }
}

resource "aws_lb_target_group" "each" {
  for_each    = local.listeners
  name        = "${var.name}-${each.key}"
  port        = each.value.target_port
  protocol    = "TCP"
  target_type = "ip"
  vpc_id      = var.vpc_id
  # The header alone says which endpoint a client came through; its address is not what the socket shows.
  proxy_protocol_v2    = each.value.proxy_protocol
  preserve_client_ip   = "false"
  deregistration_delay = tostring(var.deregistration_seconds)
  # Stragglers of a target that left are cut after the delay; those of an unhealthy one are not (below).
  connection_termination = true
  tags                   = var.tags

  health_check {
    protocol            = local.checks[each.key] == null ? "TCP" : "HTTP"
    port                = try(tostring(local.checks[each.key].port), "traffic-port")
    path                = try(local.checks[each.key].path, null)
    matcher             = local.checks[each.key] == null ? null : "200"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }

  # A pod that drains fails its check on purpose. By default AWS would reset its connections at that moment.
  target_health_state {
    enable_unhealthy_connection_termination = false
    unhealthy_draining_interval             = var.deregistration_seconds
  }
}

# The idle timeout stays at 350 s: that of endpoints is fixed, and a service with another one can't be used from other regions.
resource "aws_lb_listener" "each" {
  for_each          = local.listeners
  load_balancer_arn = aws_lb.relay[0].arn
  port              = each.value.port
  protocol          = "TCP"
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.each[each.key].arn
  }
}
